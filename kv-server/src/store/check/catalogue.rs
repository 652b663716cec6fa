//! The list of all datasets: what there should be.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::catalogue::{self, Listed};
use super::super::description::{Description, directory_name, parse_directory_name};
use super::super::recover::says_lost;
use super::report::{Finding, Level, Reporter};
use super::{Directory, of_directory};
use crate::error::StorageError;

const LISTS_THEM: &str = "the next start of the server, or --repair, lists those that are there";

impl Directory<'_> {
    /// Holds the datasets that are there to their list.
    pub(super) fn catalogue(&self, reporter: &mut Reporter<'_>, data: &Path) -> Result<(), StorageError> {
        let path = data.join(catalogue::NAME);
        let root = data.join("datasets");
        let (mut there, mut dropped) = (BTreeSet::new(), BTreeSet::new());
        if root.is_dir() {
            for name in self.files.names(&root)? {
                there.extend(parse_directory_name(&name));
                dropped.extend(name.strip_suffix(".dropped").and_then(parse_directory_name));
            }
        }
        let (listed, is_damaged) = match catalogue::read(self.files, data) {
            Ok(Some(listed)) => (listed, false),
            Ok(None) => {
                let what = "there is no list of the datasets: one that is gone is not missed".to_owned();
                reporter.found(&of_directory(Level::Note, &path, what, LISTS_THEM));
                (Listed::new(), false)
            }
            Err(error) if says_lost(&error) => {
                let what = format!(
                    "the list of the datasets, without which one that is gone is not missed: {error}"
                );
                reporter.found(&of_directory(Level::Damage, &path, what, LISTS_THEM));
                (Listed::new(), true)
            }
            Err(error) => return Err(error),
        };
        let missing = |id: &[u8; 16]| !there.contains(id) && !dropped.contains(id);
        let gone: Vec<&Description> = listed.values().filter(|it| missing(&it.id)).collect();
        for description in &gone {
            let path = root.join(directory_name(&description.id));
            let what = format!("dataset lost: its directory {} is gone", path.display());
            let remedy = "put the directory back; --repair accepts the loss";
            reporter.found(&Finding {
                dataset: Some(description.name.clone()),
                ..of_directory(Level::Damage, &path, what, remedy)
            });
        }
        let unlisted = there.iter().any(|id| !listed.contains_key(id));
        if self.repair && (is_damaged || unlisted || !gone.is_empty()) {
            self.repair_catalogue(reporter, data, (&listed, &there), is_damaged)?;
        }
        Ok(())
    }

    /// Lists the datasets that are there, and no other.
    fn repair_catalogue(
        &self,
        reporter: &mut Reporter<'_>,
        data: &Path,
        (listed, there): (&Listed, &BTreeSet<[u8; 16]>),
        is_damaged: bool,
    ) -> Result<(), StorageError> {
        let mut anew = Listed::new();
        for id in there {
            let path = data.join("datasets").join(directory_name(id));
            let read = Description::read(self.files, &path, *id).ok();
            // One that cannot be read is told of elsewhere.
            anew.extend(read.or_else(|| listed.get(id).cloned()).map(|it| (*id, it)));
        }
        if is_damaged {
            catalogue::set_aside(self.files, data)?;
        }
        catalogue::write(self.files, data, &anew)?;
        let what = format!(
            "the list of the {} datasets that are there is written anew",
            anew.len()
        );
        let path = data.join(catalogue::NAME);
        reporter.found(&of_directory(Level::Repaired, &path, what, ""));
        Ok(())
    }
}
