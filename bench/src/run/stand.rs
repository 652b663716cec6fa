//! Everything that stands while a definition is measured: a server with a dataset for each set of values, the files and
//! daemons of the peers, and what the blocks gave.

use super::definition::{Case, Count, Definition, Lengths, SideName, Start};
use super::job::{Block, Files, Go, Job, Point, monotonic_ns};
use super::sides::{self, Daemon, External};
use super::values::Values;
use super::{Args, Cut, kv};
use crate::demo::Network;
use crate::disk::make_cold;
use crate::stage::{Listen, Stage};
use crate::{Error, environment, interrupt};
use campaigns::processes::Server;

/// What a set of values is called, and what was made of it.
struct Set {
    lengths: Lengths,
    count: usize,
    dataset: String,
    values: Values,
    files: Files,
    daemons: Vec<Daemon>,
}

/// A point with its sides.
pub(crate) struct Measured {
    /// The point.
    pub(crate) point: Point,
    /// Number of its case.
    pub(crate) case: usize,
    set: usize,
    /// Its sides, `kv` first.
    pub(crate) sides: Vec<(SideName, Vec<Block>)>,
    /// What could not be measured, and why.
    pub(crate) left_out: Vec<(SideName, String)>,
}

impl Measured {
    /// The first point of a definition, with blocks of a test's choice.
    #[cfg(test)]
    pub(crate) fn for_test(definition: &Definition, sides: Vec<(SideName, Vec<Block>)>) -> Self {
        let (case, point) = points(definition, None).unwrap().remove(0);
        Self {
            point,
            case,
            set: 0,
            sides,
            left_out: Vec::new(),
        }
    }

    fn push(&mut self, side: SideName, block: Block) {
        if let Some((_, blocks)) = self.sides.iter_mut().find(|(known, _)| *known == side) {
            blocks.push(block);
        }
    }

    /// Goes on without a side, and with the reason.
    fn leave_out(&mut self, side: SideName, why: &str) {
        let before = self.sides.len();
        self.sides.retain(|(known, _)| *known != side);
        if self.sides.len() < before {
            eprintln!("run: {} goes on without `{side}`: {why}", self.point.case);
            self.left_out.push((side, why.to_owned()));
        }
    }
}

/// See the head of this file.
pub(crate) struct Stand<'a> {
    args: &'a Args,
    network: Network,
    seed: u64,
    pub(crate) blocks: usize,
    device: String,
    folder: tempfile::TempDir,
    stage: Stage,
    server: Option<Server>,
    /// Whether it was started for a cold block, so that it may still be filling images that nobody asked for.
    loading: bool,
    sets: Vec<Set>,
    pub(crate) measured: Vec<Measured>,
}

impl<'a> Stand<'a> {
    /// Starts the server, and makes and fills everything.
    pub(crate) fn new(
        args: &'a Args,
        definition: &Definition,
        cut: Option<Cut>,
        device: String,
    ) -> Result<Self, Error> {
        let at = match (definition.network, args.address) {
            (Network::Local, _) => Listen::Local,
            (Network::Verbs, _) if device.is_empty() => {
                return Err(
                    "this machine has no RDMA device (see kv doctor, or run in soft-roce-ci/run)".into(),
                );
            }
            (Network::Verbs, Some(address)) => Listen::Rdma(address, args.port),
            (Network::Verbs, None) => return Err("verbs need --address, that of the RDMA device".into()),
        };
        let points = points(definition, cut)?;
        let mut wanted: Vec<(&Lengths, usize)> = Vec::new();
        for (_, point) in &points {
            if !wanted.contains(&(&point.lengths, point.values)) {
                wanted.push((&point.lengths, point.values));
            }
        }
        let seed = definition.seed.0;
        let values: Result<Vec<Values>, Error> = wanted
            .iter()
            .map(|(lengths, count)| Values::new(lengths, *count, seed))
            .collect();
        let values = values?;
        let budget = values
            .iter()
            .map(|set| set.total_bytes() * 5 / 4 + set.count() as u64 * 1024);
        let stage = Stage::new(&args.data, at, budget.sum::<u64>() + (1 << 30))?;
        let folder = interrupt::noted(tempfile::tempdir_in(&args.data)?);
        let server = stage.start()?;
        let session = kv_client::Server::connect(&server.address.parse()?, stage.options()?)?;
        let mut sets = Vec::new();
        for (number, ((lengths, count), values)) in wanted.iter().zip(values).enumerate() {
            let dataset = format!("set-{number}");
            eprintln!(
                "run: storing {} values, {:.1} MB",
                values.count(),
                values.total_bytes() as f64 / 1e6
            );
            kv::fill(&session, &dataset, &values)?;
            let file = |what: &str| folder.path().join(format!("{number}.{what}"));
            sets.push(Set {
                lengths: (*lengths).clone(),
                count: *count,
                dataset,
                values,
                files: Files {
                    hashes: file("hashes"),
                    values: file("values"),
                    lmdb: file("lmdb"),
                    redis: file("redis"),
                    memcached: file("memcached"),
                },
                daemons: Vec::new(),
            });
        }
        drop(session);
        let mut stand = Self {
            args,
            network: definition.network,
            seed,
            blocks: cut.map_or(definition.blocks.0 as usize, |cut| cut.blocks.max(1)),
            device: if definition.network == Network::Verbs {
                device
            } else {
                String::new()
            },
            folder,
            stage,
            server: Some(server),
            loading: false,
            sets,
            measured: Vec::new(),
        };
        stand.plan(definition, points);
        stand.make_files()?;
        Ok(stand)
    }

    fn plan(&mut self, definition: &Definition, points: Vec<(usize, Point)>) {
        for (case, point) in points {
            let same = |set: &Set| set.lengths == point.lengths && set.count == point.values;
            let set = self.sets.iter().position(same).unwrap_or(0);
            let beside = definition.case[case].beside.as_deref();
            let values = &self.sets[set].values;
            let (sides, left_out) = sides::of(&point, beside, self.network, values);
            self.measured.push(Measured {
                set,
                case,
                sides: sides.into_iter().map(|side| (side, Vec::new())).collect(),
                left_out,
                point,
            });
        }
    }

    /// Makes what sides read; a peer of which that cannot be made is left out.
    fn make_files(&mut self) -> Result<(), Error> {
        for number in 0..self.sets.len() {
            let set = &mut self.sets[number];
            set.values.write_hashes(&set.files.hashes)?;
            let mut sides = Vec::new();
            for measured in self.measured.iter().filter(|measured| measured.set == number) {
                let new = measured.sides.iter().map(|(side, _)| *side);
                sides.extend(new.filter(|side| !sides.contains(side)).collect::<Vec<_>>());
            }
            for side in sides {
                match sides::prepare(side, &set.values, &set.files) {
                    Ok(daemon) => set.daemons.extend(daemon),
                    Err(error) if sides::is_peer(side) => {
                        let why = format!("it could not be set up: {error}");
                        let of_set = self.measured.iter_mut().filter(|measured| measured.set == number);
                        of_set.for_each(|measured| measured.leave_out(side, &why));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// RDMA device that is used; empty without one.
    pub(crate) fn device(&self) -> &str {
        &self.device
    }

    /// Measures all blocks. From one to the next each side of a point comes a place later.
    pub(crate) fn measure(&mut self) -> Result<(), Error> {
        let mut number = 0;
        for block in 0..self.blocks {
            eprintln!("run: block {} of {}", block + 1, self.blocks);
            for at in 0..self.measured.len() {
                let mut sides: Vec<SideName> =
                    self.measured[at].sides.iter().map(|(side, _)| *side).collect();
                let first = block % sides.len();
                sides.rotate_left(first);
                for side in sides {
                    number += 1;
                    let result = self.block(at, side, block, number);
                    let measured = &mut self.measured[at];
                    match result {
                        Ok(result) => measured.push(side, result),
                        Err(error) if sides::is_peer(side) => {
                            measured.leave_out(side, &format!("block {}: {error}", block + 1));
                        }
                        Err(error) => return Err(format!("`{side}`: {error}").into()),
                    }
                }
            }
        }
        self.stop_server()
    }

    fn stop_server(&mut self) -> Result<(), Error> {
        if let Some(server) = self.server.take() {
            let ended = server.terminate()?;
            if !ended.success() {
                return Err(format!("kv-server ended with {ended} after SIGTERM").into());
            }
        }
        Ok(())
    }

    fn block(&mut self, at: usize, side: SideName, block: usize, number: usize) -> Result<Block, Error> {
        let cold = self.measured[at].point.start == Start::Cold;
        if cold {
            self.cool(at)?;
        } else {
            self.warm_server()?;
        }
        let Self {
            measured,
            sets,
            stage,
            server,
            loading,
            ..
        } = self;
        let point = &measured[at].point;
        let set = &sets[measured[at].set];
        if External::is(side) {
            let external = External {
                device: &self.device,
                address: self.args.address,
                file: &set.files.values,
                values: &set.values,
                number,
            };
            return external.run(side, point);
        }
        let job = Job {
            point: point.clone(),
            side,
            seed: self.seed,
            block_seed: self.seed.wrapping_mul(1_000_003).wrapping_add(block as u64),
            dataset: set.dataset.clone(),
            key: stage.keys.clone(),
            device: self.device.clone(),
            files: set.files.clone(),
            compare: block == 0,
        };
        job.spawn(|| {
            if cold && side != SideName::Kv {
                return Ok(Go::now());
            }
            let began_ns = monotonic_ns();
            if server.is_none() {
                *server = Some(stage.start()?);
                *loading = true;
            }
            let server = server.as_ref().ok_or("the server is down")?;
            Ok(Go {
                server: stage.uri(&server.address, None),
                server_pid: server.pid(),
                began_ns,
            })
        })
    }

    /// Has the server up with all its images filled.
    fn warm_server(&mut self) -> Result<(), Error> {
        if self.server.is_none() {
            self.server = Some(self.stage.start()?);
            self.loading = true;
        }
        if let (true, Some(server)) = (self.loading, &self.server) {
            let session = kv_client::Server::connect(&server.address.parse()?, self.stage.options()?)?;
            kv::wait_until_loaded(&session)?;
            self.loading = false;
        }
        Ok(())
    }

    /// Has the server down and nothing of its data, nor of the others' files, in the page cache: what is timed then is
    /// all that there is to do, and nothing else uses the disk.
    fn cool(&mut self, at: usize) -> Result<(), Error> {
        self.stop_server()?;
        for folder in [self.stage.data.path(), self.folder.path()] {
            for entry in walkdir::WalkDir::new(folder) {
                let entry = entry?;
                if entry.file_type().is_file() {
                    make_cold(entry.path())?;
                }
            }
        }
        // What says what is right is not measured.
        std::fs::read(&self.sets[self.measured[at].set].files.hashes)?;
        Ok(())
    }
}

/// All points of a definition, each with the number of its case.
fn points(definition: &Definition, cut: Option<Cut>) -> Result<Vec<(usize, Point)>, Error> {
    let mut points = Vec::new();
    for (number, case) in definition.case.iter().enumerate() {
        for lengths in &case.lengths {
            for &batch in &case.batch {
                for &depth in &case.depth {
                    for &threads in &case.threads {
                        for &rate in &case.rates {
                            let mut point = Point {
                                case: case.name.clone(),
                                lengths: lengths.clone(),
                                values: count(case, lengths)?,
                                order: case.order,
                                locators: case.locators,
                                verify: case.verify,
                                check: case.check,
                                start: case.start,
                                batch,
                                depth,
                                threads,
                                queue_pairs: case.queue_pairs,
                                rate,
                                gets: case.gets,
                            };
                            if let Some(cut) = cut {
                                point.values = point.values.min(cut.values);
                                point.gets = point.gets.min(cut.gets);
                                point.batch = point.batch.min(cut.batch);
                            }
                            points.push((number, point));
                        }
                    }
                }
            }
        }
    }
    Ok(points)
}

/// How many values a point has; nothing where they are files, which say it themselves.
fn count(case: &Case, lengths: &Lengths) -> Result<usize, Error> {
    let each = match lengths {
        Lengths::Fixed(len) => *len,
        Lengths::Mix(lens) => lens.iter().sum::<u64>() / lens.len() as u64,
        Lengths::Files(_) => return Ok(0),
    };
    match case.values {
        Count::Values(values) => Ok(values as usize),
        Count::TimesL3(times) => {
            let cache = environment::last_level_cache_bytes();
            let cache =
                cache.ok_or("this machine tells no cache size: give `values` instead of `working_set_l3`")?;
            Ok((cache as f64 * times / each as f64).ceil() as usize)
        }
    }
}
