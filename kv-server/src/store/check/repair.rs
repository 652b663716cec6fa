//! What can be made whole without losing anything: the lists of segments whose records are whole.

use std::io::IoSlice;

use kv_proto::layout::{OperationEntry, trailer_flag};
use zerocopy::IntoBytes;

use super::super::operations::Operations;
use super::super::recover::{SegmentFile, take_operation};
use super::super::segment::{self, HEADER_BYTES};
use super::super::sync_kind::SyncKind;
use super::dataset::Checking;
use super::report::Level;
use super::segment::Judged;
use crate::error::StorageError;

impl Checking<'_, '_> {
    /// Seals every segment anew whose records are whole and whose FOOTERs or trailer are not.
    pub(super) fn repair(&mut self) -> Result<(), StorageError> {
        let mut judged = std::mem::take(&mut self.judged);
        for Judged { file, .. } in judged.iter_mut().filter(|it| it.headless) {
            let (Some(limit), Some((_, epoch))) = (self.segment_bytes, self.numbers) else {
                continue;
            };
            let number = file.header.segment;
            file.header = segment::header(number, file.header.identity, self.id, epoch, limit);
            let opened = self.files.open(&file.path)?;
            let mut bytes = [IoSlice::new(file.header.as_bytes())];
            self.files.write_at(&opened, &mut bytes, 0)?;
            self.files.sync(&opened, SyncKind::Header)?;
            let what = "its header is written anew".to_owned();
            self.tell(Level::Repaired, Some(number), &file.path, Some(0), None, what, "");
        }
        for Judged { file, .. } in judged.iter_mut().filter(|it| it.cut) {
            self.accept_cut(file)?;
        }
        let Some(hash_key) = self.hash_key.filter(|_| judged.iter().any(|it| it.unsealed)) else {
            return Ok(());
        };
        let operations = self.remembered(&judged, &hash_key)?;
        for Judged { file, .. } in judged.iter_mut().filter(|it| it.unsealed) {
            let opened = self.files.open(&file.path)?;
            let mut entries = Vec::new();
            let scanned = file.walk(self.files, &opened, HEADER_BYTES, |found| {
                entries.push(found.entry(&hash_key));
            })?;
            drop(opened);
            if !scanned.damaged.is_empty() {
                continue;
            }
            // Nothing of its records is written anew: they were just read.
            let lists = (&entries[..], &operations[..]);
            file.seal(self.files, scanned.end, &scanned, lists, || false)?;
            if file.trailer.is_none_or(|trailer| trailer.footer_count == 0) {
                let what = "the disk is full: its records cannot be listed".to_owned();
                let remedy = "they are read at each start; free some space, and repair again";
                let number = Some(file.header.segment);
                self.tell(Level::Note, number, &file.path, None, None, what, remedy);
                continue;
            }
            let what = format!(
                "FOOTERs and trailer of {} records are written anew",
                entries.len()
            );
            let number = Some(file.header.segment);
            self.tell(
                Level::Repaired,
                number,
                &file.path,
                Some(scanned.end),
                None,
                what,
                "",
            );
        }
        Ok(())
    }

    /// Has a segment count as whole whose file was cut short.
    fn accept_cut(&mut self, file: &mut SegmentFile) -> Result<(), StorageError> {
        let opened = self.files.open(&file.path)?;
        if let Some(trailer) = &mut file.trailer {
            trailer.flags &= !trailer_flag::CUT;
            segment::seal_trailer(trailer);
            let at = self.files.len(&opened)? - HEADER_BYTES;
            let mut bytes = [IoSlice::new(trailer.as_bytes())];
            self.files.write_at(&opened, &mut bytes, at)?;
            self.files.sync(&opened, SyncKind::Trailer)?;
        } else if file.is_full_length() {
            // It is sealed where its records end, by what follows or by the next start, as after a crash.
            self.files.truncate(&opened, file.header.limit_bytes)?;
            self.files.sync(&opened, SyncKind::Recovered)?;
        }
        file.cut = false;
        let what = "that it was cut short is accepted".to_owned();
        let number = Some(file.header.segment);
        self.tell(
            Level::Repaired,
            number,
            &file.path,
            Some(file.len),
            None,
            what,
            "",
        );
        Ok(())
    }

    /// The operations that a start would remember: those of the newest FOOTERs that validate, and of the records of
    /// segments without.
    fn remembered(
        &self,
        judged: &[Judged],
        hash_key: &[u8; 16],
    ) -> Result<Vec<OperationEntry>, StorageError> {
        let operations = Operations::default();
        for it in judged.iter().filter(|it| it.operations.is_none()) {
            let opened = self.files.open(&it.file.path)?;
            it.file.walk(self.files, &opened, HEADER_BYTES, |found| {
                let entry = found.entry(hash_key);
                take_operation(&operations, it.file.header.segment, &found, &entry);
            })?;
        }
        let newest = judged.iter().filter(|it| it.operations.is_some());
        let newest = newest.max_by_key(|it| it.file.header.segment);
        for entry in newest.iter().flat_map(|it| it.operations.iter().flatten()) {
            operations.take_entry(entry);
        }
        // As a start has it: only a sealed segment that cannot be read may have said more.
        let read = |it: &Judged| it.operations.is_some() || it.file.trailer.is_none();
        operations.all_recovered(judged.iter().all(read));
        Ok(operations.entries())
    }
}
