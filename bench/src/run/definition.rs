//! What `bench run` measures, as a TOML file says it. An unknown key or an impossible value is an error that shows its
//! line, the value, and what may be there instead.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::given::{OneOrMany, Positive, Whole};
use crate::Error;
use crate::demo::Network;

/// Longest value, bytes.
const VALUE_MAX_BYTES: u64 = 256 << 20;
/// Values of a case that says nothing else.
const VALUES_DEFAULT: u64 = 1024;
/// GETs of one block of a case that says nothing else.
const GETS_DEFAULT: u64 = 10_000;

/// What a DEF.toml says; see `example.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Definition {
    /// What the report is called.
    pub(crate) title: String,
    /// Network between server and client.
    pub(crate) network: Network,
    /// Alternating blocks.
    #[serde(default = "twelve")]
    pub(crate) blocks: Whole<1, 10_000>,
    /// What every order and all contents are drawn from.
    #[serde(default = "one")]
    pub(crate) seed: Whole<0, { i64::MAX as u64 }>,
    /// What is measured.
    pub(crate) case: Vec<Case>,
    /// What it is held to.
    #[serde(default)]
    pub(crate) target: Vec<Target>,
}

/// One thing that is measured: at several points where a list is given.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "RawCase")]
pub(crate) struct Case {
    /// Its name.
    pub(crate) name: String,
    /// Lengths: one point for each.
    pub(crate) lengths: Vec<Lengths>,
    /// How many values.
    pub(crate) values: Count,
    /// Order in which they are asked for.
    pub(crate) order: Order,
    /// What is known of a value before it is asked for.
    pub(crate) locators: Locators,
    /// Whether the client checks the CRC of values.
    pub(crate) verify: bool,
    /// Whether every value is compared in the timed pass too, by a 64-bit hash of its bytes.
    pub(crate) check: bool,
    /// Whether the images are loaded and everything was asked for once.
    pub(crate) start: Start,
    /// GETs of one call.
    pub(crate) batch: Vec<usize>,
    /// READs that one queue pair holds.
    pub(crate) depth: Vec<usize>,
    /// Threads that ask.
    pub(crate) threads: Vec<usize>,
    /// Data connections of each thread.
    pub(crate) queue_pairs: usize,
    /// GETs a second of an open loop; none for a closed one.
    pub(crate) rates: Vec<Option<f64>>,
    /// GETs of one block, of all threads.
    pub(crate) gets: usize,
    /// What is measured beside; all that applies where it is not said.
    pub(crate) beside: Option<Vec<SideName>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    name: String,
    value_bytes: Sizes,
    values: Option<Whole<1, 100_000_000>>,
    working_set_l3: Option<Positive>,
    #[serde(default)]
    order: OrderName,
    zipf: Option<Positive>,
    #[serde(default)]
    locators: Locators,
    #[serde(default = "yes")]
    verify: bool,
    #[serde(default = "yes")]
    check: bool,
    #[serde(default)]
    start: Start,
    #[serde(default)]
    batch: OneOrMany<Whole<1, 65_536>>,
    depth: Option<OneOrMany<Whole<1, 16_384>>>,
    #[serde(default)]
    threads: OneOrMany<Whole<1, 256>>,
    queue_pairs: Option<Whole<1, 64>>,
    #[serde(default, rename = "loop")]
    pace: Pace,
    rate: Option<OneOrMany<Positive>>,
    gets: Option<Whole<1, 1_000_000_000>>,
    beside: Option<Vec<SideName>>,
}

fn yes() -> bool {
    true
}

fn twelve() -> Whole<1, 10_000> {
    Whole(12)
}

fn one() -> Whole<0, { i64::MAX as u64 }> {
    Whole(1)
}

/// How long values are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Lengths {
    /// All as long as this, bytes.
    Fixed(u64),
    /// Equally many of each.
    Mix(Vec<u64>),
    /// The files below a directory: their lengths, contents and relative paths.
    Files(PathBuf),
}

/// `value_bytes`: a length, a list of them (a point each), or a table.
#[derive(Debug)]
struct Sizes(Vec<Lengths>);

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Spread {
    Mix(OneOrMany<Whole<1, VALUE_MAX_BYTES>>),
    Files(String),
}

impl<'de> Deserialize<'de> for Sizes {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Sizes;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str(
                    "a length in bytes, a list of lengths, { mix = [lengths] } or { files = \"directory\" }",
                )
            }

            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Sizes, E> {
                let whole = Whole::<1, VALUE_MAX_BYTES>::new(value)?;
                Ok(Sizes(vec![Lengths::Fixed(whole.0)]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, from: A) -> Result<Sizes, A::Error> {
                let from = serde::de::value::SeqAccessDeserializer::new(from);
                let many = OneOrMany::<Whole<1, VALUE_MAX_BYTES>>::deserialize(from)?;
                Ok(Sizes(
                    many.0.into_iter().map(|size| Lengths::Fixed(size.0)).collect(),
                ))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, from: A) -> Result<Sizes, A::Error> {
                let from = serde::de::value::MapAccessDeserializer::new(from);
                Ok(Sizes(vec![match Spread::deserialize(from)? {
                    Spread::Mix(sizes) => Lengths::Mix(sizes.0.into_iter().map(|size| size.0).collect()),
                    Spread::Files(directory) => Lengths::Files(found(&directory)?),
                }]))
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// A directory, or the one that the environment variable of this name says.
fn found<E: serde::de::Error>(directory: &str) -> Result<PathBuf, E> {
    let Some(variable) = directory.strip_prefix('$') else {
        return Ok(directory.into());
    };
    let set = std::env::var_os(variable).map(PathBuf::from);
    set.ok_or_else(|| E::custom(format!("{variable} is not set: set it to a directory of files")))
}

/// How many values there are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Count {
    /// So many.
    Values(u64),
    /// As many as make so many times this machine's last level of cache.
    TimesL3(f64),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OrderName {
    Uniform,
    Zipf,
    #[default]
    Epoch,
}

/// Order in which values are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    /// Each as likely as any other.
    Uniform,
    /// The n-th most wanted as often as n to the minus this.
    Zipf(f64),
    /// All of them once in random order, then again in another.
    Epoch,
}

/// What is known of a value before it is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Locators {
    /// Where it lies.
    #[default]
    Known,
    /// Its key: the newest value is wanted.
    Live,
}

/// What happened before a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Start {
    /// Everything was asked for once.
    #[default]
    Warm,
    /// Nothing: no file is in the page cache, and the clock starts with the server.
    Cold,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Pace {
    #[default]
    Closed,
    Open,
}

/// What a case is measured with. `kv` is this project's client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "each is a file of `sides`")]
pub(crate) enum SideName {
    Kv,
    #[serde(rename = "kv+tickets")]
    KvTickets,
    Perftest,
    Replay,
    Ucx,
    Memcpy,
    Crc,
    Pread,
    Lmdb,
    #[serde(rename = "lmdb+crc")]
    LmdbCrc,
    Redis,
    Memcached,
    Fio,
}

impl std::fmt::Display for SideName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(out)
    }
}

impl TryFrom<RawCase> for Case {
    type Error = String;

    fn try_from(raw: RawCase) -> Result<Self, String> {
        let said = |what: &str| Err(format!("case `{}`: {what}", raw.name));
        let files = raw
            .value_bytes
            .0
            .iter()
            .any(|sizes| matches!(sizes, Lengths::Files(_)));
        let values = match (raw.values, raw.working_set_l3) {
            (Some(_), Some(_)) => return said("`values` and `working_set_l3` say the same: leave one out"),
            (None, Some(times)) => Count::TimesL3(times.0),
            (given, None) => Count::Values(given.map_or(VALUES_DEFAULT, |values| values.0)),
        };
        if files && (raw.values.is_some() || raw.working_set_l3.is_some()) {
            return said("the files are the values: leave `values` and `working_set_l3` out");
        }
        let order = match (raw.order, raw.zipf) {
            (OrderName::Zipf, exponent) => Order::Zipf(exponent.map_or(0.99, |exponent| exponent.0)),
            (_, Some(_)) => {
                return said("`zipf` is an exponent for order = \"zipf\": leave it out or set that");
            }
            (OrderName::Uniform, None) => Order::Uniform,
            (OrderName::Epoch, None) => Order::Epoch,
        };
        if raw.start == Start::Cold && raw.pace == Pace::Open {
            return said("a cold start is timed as a whole: start = \"cold\" needs loop = \"closed\"");
        }
        if raw.start == Start::Cold && order != Order::Epoch {
            return said("a value is cold once: start = \"cold\" needs order = \"epoch\"");
        }
        let rates = match (raw.pace, raw.rate) {
            (Pace::Closed, None) => vec![None],
            (Pace::Open, Some(rates)) => rates.0.into_iter().map(|rate| Some(rate.0)).collect(),
            (Pace::Open, None) => return said("loop = \"open\" needs `rate`, GETs a second"),
            (Pace::Closed, Some(_)) => return said("`rate` needs loop = \"open\""),
        };
        if raw
            .beside
            .as_ref()
            .is_some_and(|sides| sides.contains(&SideName::Kv))
        {
            return said("`kv` is always measured: leave it out of `beside`");
        }
        Ok(Self {
            name: raw.name,
            lengths: raw.value_bytes.0,
            values,
            order,
            locators: raw.locators,
            verify: raw.verify,
            check: raw.check,
            start: raw.start,
            batch: raw.batch.sizes(),
            depth: raw.depth.map_or_else(|| vec![64], |depths| depths.sizes()),
            threads: raw.threads.sizes(),
            queue_pairs: raw.queue_pairs.map_or(1, |count| count.0 as usize),
            rates,
            gets: raw.gets.map_or(GETS_DEFAULT, |gets| gets.0) as usize,
            beside: raw.beside,
        })
    }
}

/// Which figure of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Metric {
    /// Median time of a call, us.
    Latency,
    /// GETs a second: inside calls, where the loop is closed.
    Throughput,
    /// GETs a second of all threads from the first call to the last one's end, what compares values between calls and all.
    Wall,
}

impl std::fmt::Display for Metric {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Latency => "latency",
            Self::Throughput => "GETs/s",
            Self::Wall => "GETs/s by the clock",
        })
    }
}

/// One term of what a figure is divided by.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Term {
    /// The case, if not the target's own.
    pub(crate) case: Option<toml::Spanned<String>>,
    /// Whose figure.
    pub(crate) side: SideName,
    /// How many times it.
    #[serde(default = "once")]
    pub(crate) times: Positive,
}

fn once() -> Positive {
    Positive(1.0)
}

/// What a ratio is held to.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "RawTarget")]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: String,
    /// The case whose `kv` is judged, at each of its points.
    pub(crate) case: toml::Spanned<String>,
    /// By what.
    pub(crate) metric: Metric,
    /// Over the sum of these.
    pub(crate) over: Vec<Term>,
    /// What it must hold.
    pub(crate) bound: Bound,
}

/// What a ratio must hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTarget {
    name: String,
    case: toml::Spanned<String>,
    metric: Metric,
    over: Vec<Term>,
    at_most: Option<Positive>,
    at_least: Option<Positive>,
}

impl TryFrom<RawTarget> for Target {
    type Error = String;

    fn try_from(raw: RawTarget) -> Result<Self, String> {
        let bound = match (raw.at_most, raw.at_least) {
            (Some(most), None) => Bound::AtMost(most.0),
            (None, Some(least)) => Bound::AtLeast(least.0),
            _ => {
                return Err(format!(
                    "target `{}`: give one of `at_most` and `at_least`",
                    raw.name
                ));
            }
        };
        if raw.over.is_empty() {
            return Err(format!(
                "target `{}`: `over` is empty: name what it is measured against",
                raw.name
            ));
        }
        Ok(Self {
            name: raw.name,
            case: raw.case,
            metric: raw.metric,
            over: raw.over,
            bound,
        })
    }
}

impl Definition {
    /// Reads a definition; errors name `name`, the line, and what to do.
    pub(crate) fn parse(text: &str, name: &str) -> Result<Self, Error> {
        let definition: Self =
            toml::from_str(text).map_err(|error| format!("{name}: {}", error.to_string().trim_end()))?;
        definition.check(text, name)?;
        Ok(definition)
    }

    /// What no single value shows.
    fn check(&self, text: &str, name: &str) -> Result<(), Error> {
        if self.case.is_empty() {
            return Err(
                format!("{name}: it has no [[case]]: add one (bench run --example shows how)").into(),
            );
        }
        for (index, case) in self.case.iter().enumerate() {
            if self.case[..index].iter().any(|other| other.name == case.name) {
                return Err(format!("{name}: two cases are called `{}`: rename one", case.name).into());
            }
        }
        for target in &self.target {
            self.check_side(text, name, &target.case, SideName::Kv)?;
            for term in &target.over {
                self.check_side(text, name, term.case.as_ref().unwrap_or(&target.case), term.side)?;
            }
        }
        Ok(())
    }

    fn check_side(
        &self,
        text: &str,
        name: &str,
        case: &toml::Spanned<String>,
        side: SideName,
    ) -> Result<(), Error> {
        let line = 1 + text[..case.span().start].matches('\n').count();
        let found = self.case.iter().find(|known| known.name == *case.get_ref());
        let Some(found) = found else {
            let known: Vec<&str> = self.case.iter().map(|case| case.name.as_str()).collect();
            return Err(format!(
                "{name}: line {line}: there is no case `{}`: give one of `{}`",
                case.get_ref(),
                known.join("`, `")
            )
            .into());
        };
        let measured =
            side == SideName::Kv || found.beside.as_ref().is_none_or(|sides| sides.contains(&side));
        if !measured {
            return Err(format!(
                "{name}: line {line}: case `{}` is not measured beside `{side}`: add it to its `beside`",
                case.get_ref()
            )
            .into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
