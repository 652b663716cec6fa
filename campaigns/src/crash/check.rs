//! What is compared after a restart: every key, by list and by get, with the model; and that an operation which is
//! sent again is done once.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use kv_client::{Client, ReadError, Server as Session};

use super::model::{MAIN, Model, Name, Value, Wrong, shown};
use super::place::Place;
use super::work::{CHURNED, DATASET, Mark, Operation, Outcome, Writer, churned_key};

/// Longest that a call goes on while nobody kills the server.
const DEADLINE: Duration = Duration::from_secs(60);
/// Keys read in one call.
const BATCH_KEYS: usize = 64;
/// Operations of a writer that were answered before and are sent once more, in a round.
const AGAIN_MAX: usize = 2;
/// Words in figures of the server that say that something is gone.
const DAMAGE: [&str; 3] = ["damaged", "lost", "cut"];

/// What a comparison and its retries gave.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    /// Keys compared.
    pub(crate) keys: u64,
    /// Operations without answer that had been done, and that had not.
    pub(crate) done: u64,
    pub(crate) undone: u64,
    /// Operations that were sent once more.
    pub(crate) retries: u64,
}

/// One comparison.
pub(crate) struct Check<'a> {
    pub(crate) place: &'a Place,
    pub(crate) model: &'a Model,
    pub(crate) mark: Mark<'a>,
}

fn said(what: &str) -> impl Fn(kv_client::ClientError) -> Wrong {
    move |error| format!("{what}: {error}")
}

/// All values of a dataset by list, and of `names` by get: both must say the same.
pub(crate) fn contents(client: &Client, names: &[Name]) -> Result<BTreeMap<Vec<u8>, Option<Vec<u8>>>, Wrong> {
    let mut listed = BTreeMap::new();
    for entry in client.list() {
        let entry = entry.map_err(said("list"))?;
        if listed.insert(entry.key.clone(), entry.value_len_bytes).is_some() {
            return Err(format!("`{}` is listed twice", entry.key.escape_ascii()));
        }
    }
    let mut keys: Vec<Vec<u8>> = names.iter().map(|name| name.key.clone()).collect();
    keys.extend(listed.keys().cloned());
    keys.sort();
    keys.dedup();
    let mut found = BTreeMap::new();
    for batch in keys.chunks(BATCH_KEYS) {
        for (key, value) in batch.iter().zip(client.get_many(batch)) {
            let shown = key.escape_ascii();
            let value = match value {
                Ok(value) => Some(value),
                Err(ReadError::NotFound) => None,
                Err(error) => return Err(format!("get `{shown}`: {error}")),
            };
            let len = value.as_ref().map(|value| value.len() as u64);
            if listed.get(key).copied() != len {
                return Err(format!(
                    "list says that `{shown}` has {:?} bytes, get finds {len:?}",
                    listed.get(key)
                ));
            }
            found.insert(key.clone(), value);
        }
    }
    Ok(found)
}

/// Names of the datasets there that come and go.
pub(crate) fn churned_names(session: &Session) -> Result<Vec<String>, Wrong> {
    let names = session.datasets().map_err(said("list of datasets"))?;
    Ok(names
        .into_iter()
        .map(|info| info.name)
        .filter(|name| name.starts_with(CHURNED))
        .collect())
}

/// Complains of figures that say that anything is damaged or gone.
pub(crate) fn healthy(client: &Client) -> Result<(), Wrong> {
    unharmed(&client.stat().map_err(said("stat"))?)
}

/// The same of those of the server itself.
pub(crate) fn healthy_server(session: &Session) -> Result<(), Wrong> {
    unharmed(&session.stat().map_err(said("stat of the server"))?)
}

fn unharmed(figures: &[(String, u64)]) -> Result<(), Wrong> {
    let bad = |name: &str| name.split('_').any(|word| DAMAGE.contains(&word));
    match figures.iter().find(|(name, value)| bad(name) && *value != 0) {
        Some((name, value)) => Err(format!("the server says {name} {value}")),
        None => Ok(()),
    }
}

impl Check<'_> {
    fn session(&self, pinned: Option<(u64, u64)>) -> Result<Session, Wrong> {
        self.place
            .session(self.place.options(DEADLINE, pinned))
            .map_err(said("a session after the restart"))
    }

    /// Compares everything with the model, then sends what had no answer again.
    pub(crate) fn all(&self, writers: &mut [Writer], rng: &mut Rng) -> Result<Tally, Wrong> {
        let mut tally = Tally::default();
        let session = self.session(None)?;
        healthy_server(&session)?;
        let main = session.open(DATASET).map_err(said("opening the dataset"))?;
        healthy(&main)?;
        let names = self.model.names(MAIN);
        for (key, value) in contents(&main, &names)? {
            self.settle(&Name { dataset: MAIN, key }, value.as_deref())?;
            tally.keys += 1;
        }
        self.churned(&session, &mut tally)?;
        for writer in writers {
            let pending = std::mem::take(&mut writer.pending);
            for operation in pending {
                self.pending(writer.client_id, operation, &main, rng, &mut tally)
                    .map(|operation| writer.remember(operation))?;
            }
            for _ in 0..rng.usize(..=AGAIN_MAX) {
                let operation = rng.choice(&writer.done).filter(|done| done.number.is_some());
                if let Some(operation) = operation {
                    self.again(writer.client_id, operation, &main)?;
                    tally.retries += 1;
                }
            }
        }
        Ok(tally)
    }

    fn churned(&self, session: &Session, tally: &mut Tally) -> Result<(), Wrong> {
        let certain = self.model.settle_churned(&churned_names(session)?)?;
        certain.map_or(Ok(()), self.mark)?;
        let Some(there) = self.model.churned() else {
            return Ok(());
        };
        let client = session.open(&there.name).map_err(said("opening a dataset"))?;
        healthy(&client)?;
        let names = self.model.names(there.dataset);
        for (key, value) in contents(&client, &names)? {
            let name = Name {
                dataset: there.dataset,
                key,
            };
            if name != churned_key(there.dataset) {
                return Err(format!("{} is there, and was never stored", shown(&name)));
            }
            self.settle(&name, value.as_deref())?;
            tally.keys += 1;
        }
        Ok(())
    }

    /// What somebody has seen must stay, as what was answered.
    fn settle(&self, name: &Name, found: Option<&[u8]>) -> Result<(), Wrong> {
        self.model.settle(name, found)?.map_or(Ok(()), self.mark)
    }

    fn finds(&self, client: &Client, name: &Name) -> Result<(), Wrong> {
        let found = match client.get(&name.key) {
            Ok(found) => Some(found),
            Err(ReadError::NotFound) => None,
            Err(error) => return Err(format!("get {}: {error}", shown(name))),
        };
        self.settle(name, found.as_deref())
    }

    /// Sends an operation again that had no answer. Where it had been done, another client may have changed the key
    /// since: the retry must not undo that.
    fn pending(
        &self,
        client_id: u64,
        mut operation: Operation,
        main: &Client,
        rng: &mut Rng,
        tally: &mut Tally,
    ) -> Result<Operation, Wrong> {
        let name = operation.name.clone();
        let now = self.model.certain(&name);
        // A deletion of what was not there shows nowhere: it counts as not done, which asks for no less.
        let done = operation.held.is_some() && now == operation.held;
        *(if done { &mut tally.done } else { &mut tally.undone }) += 1;
        let Some(number) = operation.number else {
            return Ok(operation);
        };
        let rivaled = done && rng.bool();
        if rivaled {
            self.rival(main, &name, rng)?;
        }
        if !done {
            self.model.ask(&name, operation.id, operation.held);
        }
        let outcome = self.send(client_id, number, &operation)?;
        tally.retries += 1;
        if !done {
            (self.mark)(operation.id)?;
            self.model.answered(&name, operation.id);
            if now.is_some() && outcome == Outcome::Deleted(false) {
                return Err(format!(
                    "deleting {} again said that it was not there",
                    shown(&name)
                ));
            }
        }
        self.finds(main, &name)?;
        operation.outcome = Some(outcome);
        if !rivaled && rng.bool() {
            self.rival(main, &name, rng)?;
            self.again(client_id, &operation, main)?;
            tally.retries += 1;
        }
        Ok(operation)
    }

    /// Another client changes the key.
    fn rival(&self, main: &Client, name: &Name, rng: &mut Rng) -> Result<(), Wrong> {
        let id = self.model.next_id();
        let held = rng.bool().then(|| Value {
            id,
            len: rng.usize(..2000),
        });
        self.model.ask(name, id, held);
        let rival = Operation {
            name: name.clone(),
            id,
            held,
            number: None,
            outcome: None,
        };
        rival
            .perform(main, self.model.seed())
            .map_err(said("another client"))?;
        (self.mark)(id)?;
        self.model.answered(name, id);
        Ok(())
    }

    fn send(&self, client_id: u64, number: u64, operation: &Operation) -> Result<Outcome, Wrong> {
        let session = self.session(Some((client_id, number)))?;
        let client = session.open(DATASET).map_err(said("opening the dataset"))?;
        let what = format!("sending {} again, as number {number}", shown(&operation.name));
        operation.perform(&client, self.model.seed()).map_err(said(&what))
    }

    /// Sends an operation again that was answered: it is answered the same, and changes nothing.
    fn again(&self, client_id: u64, operation: &Operation, main: &Client) -> Result<(), Wrong> {
        let Some(number) = operation.number else {
            return Ok(());
        };
        let outcome = self.send(client_id, number, operation)?;
        if operation.outcome.is_some_and(|first| first != outcome) {
            return Err(format!(
                "{} (number {number}) was answered {:?}, and sent again {outcome:?}",
                shown(&operation.name),
                operation.outcome
            ));
        }
        self.finds(main, &operation.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_of_harm_is_known() {
        let figure = |name: &str, value| unharmed(&[("keys_count".to_owned(), 7), (name.to_owned(), value)]);
        for name in [
            "lost_segments_count",
            "cut_segments_count",
            "damaged_records_count",
            "damaged_segment_lists_count",
            "damaged_catalogues_count",
            "lost_datasets_count",
        ] {
            assert_eq!(figure(name, 0), Ok(()));
            assert_eq!(figure(name, 1), Err(format!("the server says {name} 1")));
        }
    }
}
