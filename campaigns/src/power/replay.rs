//! What a server makes of the device after a power cut, compared with what was answered before it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cut::Cut;
use super::device::{DATA_BYTES, Mounted};
use super::log::Log;
use crate::crash::check::{churned_names, contents, healthy, healthy_server};
use crate::crash::life::no_panic;
use crate::crash::model::{Churned, History, MAIN, Name, Step, Value, churned_is, holds, shown};
use crate::crash::place::Place;
use crate::crash::work::DATASET;

/// Longest that a call goes on: nothing disturbs it.
const DEADLINE: Duration = Duration::from_secs(60);

/// Everything that was asked for while the log was written.
pub(crate) struct Asked {
    pub(crate) seed: u64,
    pub(crate) keys: BTreeMap<Name, History<Value>>,
    pub(crate) churned: History<Churned>,
}

/// Where cuts are tried, one after the other.
pub(crate) struct Bench {
    image: PathBuf,
    mount: PathBuf,
    scratch: PathBuf,
    arguments: Vec<OsString>,
}

/// The last change that was marked, and the one after it, which may have been under way.
fn may_hold<'a, T: Clone + PartialEq>(history: &'a History<T>, marked: &BTreeSet<u64>) -> &'a [Step<T>] {
    let steps = history.steps();
    let last = steps
        .iter()
        .rposition(|step| marked.contains(&step.id))
        .unwrap_or(0);
    &steps[last..steps.len().min(last + 2)]
}

impl Bench {
    /// A bench in `directory`, which should be in memory.
    pub(crate) fn new(directory: &Path, arguments: &[OsString]) -> std::io::Result<Self> {
        let this = Self {
            image: directory.join("image"),
            mount: directory.join("mount"),
            scratch: directory.join("scratch"),
            arguments: arguments.to_vec(),
        };
        fs::create_dir_all(&this.mount)?;
        fs::create_dir_all(&this.scratch)?;
        Ok(this)
    }

    /// Cuts the power, mounts, starts a server, and compares; the changes that were owed, or what is wrong.
    pub(crate) fn try_cut(&self, log: &Log, cut: Cut, asked: &Asked) -> Result<usize, String> {
        let failed = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        let image = File::create(&self.image).map_err(failed("the image"))?;
        image.set_len(DATA_BYTES).map_err(failed("the image"))?;
        cut.write(log, &image).map_err(|error| error.to_string())?;
        drop(image);
        let mounted = Mounted::new(&self.image, &self.mount)?;
        let result = self.compare(&cut.marked(log), asked);
        drop(mounted);
        result
    }

    fn compare(&self, marked: &BTreeSet<u64>, asked: &Asked) -> Result<usize, String> {
        let _ = fs::remove_file(self.scratch.join("kv-server.log"));
        let place = Place::new(&self.mount.join("data"), &self.scratch, &self.arguments)
            .map_err(|error| error.to_string())?;
        let server = place.start().map_err(|error| error.to_string())?;
        let result = compare_with(&place, marked, asked);
        server.kill().map_err(|error| error.to_string())?;
        no_panic(&place).map_err(|error| error.to_string())?;
        result.map(|()| marked.len())
    }
}

fn compare_with(place: &Place, marked: &BTreeSet<u64>, asked: &Asked) -> Result<(), String> {
    let session = place
        .session(place.options(DEADLINE, None))
        .map_err(|error| error.to_string())?;
    healthy_server(&session)?;
    let datasets = session.datasets().map_err(|error| error.to_string())?;
    if datasets.iter().any(|info| info.name == DATASET) {
        compare_dataset(&session, DATASET, MAIN, marked, asked)?;
    } else if marked.contains(&MAIN) {
        return Err(format!("the dataset {DATASET} is gone"));
    }
    let found = churned_names(&session)?;
    let may = may_hold(&asked.churned, marked);
    let is = may.iter().find(|step| churned_is(step.held.as_ref(), &found));
    match is {
        None => {
            let may: Vec<_> = may.iter().map(|step| &step.held).collect();
            Err(format!(
                "the datasets {found:?} are there, and may be one of {may:?}"
            ))
        }
        Some(Step { held: Some(held), .. }) => {
            compare_dataset(&session, &held.name, held.dataset, marked, asked)
        }
        Some(_) => Ok(()),
    }
}

fn compare_dataset(
    session: &kv_client::Server,
    dataset: &str,
    id: u64,
    marked: &BTreeSet<u64>,
    asked: &Asked,
) -> Result<(), String> {
    let client = session.open(dataset).map_err(|error| error.to_string())?;
    healthy(&client)?;
    let names: Vec<Name> = asked
        .keys
        .keys()
        .filter(|name| name.dataset == id)
        .cloned()
        .collect();
    for (key, value) in contents(&client, &names)? {
        let name = Name { dataset: id, key };
        let Some(history) = asked.keys.get(&name) else {
            return Err(format!("{} is there, and was never stored", shown(&name)));
        };
        let may = may_hold(history, marked);
        if !may
            .iter()
            .any(|step| holds(step.held, value.as_deref(), asked.seed))
        {
            return Err(wrong(&name, may, history, value.as_deref(), asked.seed));
        }
    }
    Ok(())
}

fn wrong(
    name: &Name,
    may: &[Step<Value>],
    history: &History<Value>,
    found: Option<&[u8]>,
    seed: u64,
) -> String {
    let of = |step: &Step<Value>| match step.held {
        Some(value) => format!("the {} bytes of change {}", value.len, step.id),
        None => format!("nothing (change {})", step.id),
    };
    let may: Vec<String> = may.iter().map(of).collect();
    let older = history.steps().iter().find(|step| holds(step.held, found, seed));
    let found = match (older, found) {
        (Some(step), _) => of(step),
        (None, Some(found)) => format!("{} bytes that nobody stored under it", found.len()),
        (None, None) => "nothing".to_owned(),
    };
    format!("{} holds {found}; it may hold {}", shown(name), may.join(" or "))
}
