//! What can be made whole without losing anything: the lists of segments whose records are whole.

use std::io::IoSlice;

use kv_proto::layout::OperationEntry;
use zerocopy::IntoBytes;

use super::super::operations::Operations;
use super::super::recover::take_operation;
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
            file.seal(self.files, scanned.end, &scanned, &entries, &operations)?;
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
        operations.all_recovered(judged.iter().all(|it| it.operations.is_some()));
        Ok(operations.entries())
    }
}
