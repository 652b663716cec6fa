//! The list of a dataset's segments: what there should be.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::recover::says_lost;
use super::super::{segment_list, segment_path};
use super::dataset::Checking;
use super::report::Level;
use super::segment::UNNAMED;
use crate::error::StorageError;

impl Checking<'_, '_> {
    /// Holds the segments `found` in `directory` to their list; whether nothing is to be repaired of that.
    pub(super) fn segment_list(
        &mut self,
        directory: &Path,
        found: &BTreeSet<u32>,
    ) -> Result<bool, StorageError> {
        let path = directory.join(segment_list::NAME);
        let listed = match segment_list::read(self.files, directory, self.id) {
            Ok(Some(listed)) => listed,
            Ok(None) => {
                let what = "there is no list of the segments: one that is gone is not missed".to_owned();
                let remedy = "the next start of the server, or --repair, lists those that are there";
                self.tell(Level::Note, None, &path, None, None, what, remedy);
                return Ok(false);
            }
            Err(error) if says_lost(&error) => {
                let what = format!(
                    "the list of the segments, without which one that is gone is not missed: {error}"
                );
                let remedy = "the next start of the server, or --repair, lists those that are there";
                self.damage(None, &path, None, None, what, remedy);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let gone: Vec<u32> = listed.difference(found).copied().collect();
        for number in &gone {
            self.lost_segments.insert(*number);
            let path = segment_path(directory, *number);
            let what = format!("segment lost: its file {} is gone", path.display());
            let remedy = format!(
                "put the file back; {UNNAMED}; --repair accepts the loss: after that the file must not come back"
            );
            self.damage(Some(*number), &path, None, None, what, &remedy);
        }
        let unlisted: Vec<u32> = found.difference(&listed).copied().collect();
        for number in &unlisted {
            let path = segment_path(directory, *number);
            let what = "not in the list of the segments: it would not be missed".to_owned();
            let remedy = "the next start of the server, or --repair, lists it";
            self.tell(Level::Note, Some(*number), &path, None, None, what, remedy);
        }
        Ok(gone.is_empty() && unlisted.is_empty())
    }

    /// Lists the segments `found`, and no other.
    pub(super) fn repair_segment_list(
        &mut self,
        directory: &Path,
        found: &BTreeSet<u32>,
    ) -> Result<(), StorageError> {
        let read = segment_list::read(self.files, directory, self.id);
        let is_damaged = read.is_err_and(|error| says_lost(&error));
        // Listed, and not there after a power cut, one would be missed.
        self.files.sync_directory(directory)?;
        if is_damaged {
            segment_list::set_aside(self.files, directory)?;
        }
        segment_list::write(self.files, directory, self.id, found)?;
        let kept = match is_damaged {
            true => format!("; the old one is {} now", segment_list::DAMAGED_NAME),
            false => String::new(),
        };
        let what = format!(
            "the list of the {} segments that are there is written anew{kept}",
            found.len()
        );
        let path = directory.join(segment_list::NAME);
        self.tell(Level::Repaired, None, &path, None, None, what, "");
        Ok(())
    }
}
