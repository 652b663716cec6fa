//! What callgrind wrote: instructions of each function, and of what it called.

use std::collections::HashMap;

use crate::Error;

/// Instructions that were counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Profile {
    /// All of them.
    pub(super) total: u64,
    /// Of calls from outside the network into it, with all that they called.
    pub(super) network: u64,
    /// Of each function alone, outside the network, the most first.
    pub(super) functions: Vec<(String, u64)>,
}

/// Names are given once, with a number that stands for them from then on.
#[derive(Default)]
struct Names(HashMap<String, String>);

impl Names {
    /// The name in `(12) name` or `(12)`.
    fn resolve(&mut self, text: &str) -> Result<String, Error> {
        let end = text
            .find(')')
            .ok_or_else(|| format!("callgrind names a function `{text}`"))?;
        let (number, name) = (&text[..=end], text[end + 1..].trim());
        if !name.is_empty() {
            self.0.insert(number.to_owned(), name.to_owned());
        }
        let known = self.0.get(number).cloned();
        known.ok_or_else(|| format!("callgrind names no function {number}").into())
    }
}

/// Reads a profile; functions whose name contains `network` are the network.
pub(super) fn read(text: &str, network: &str) -> Result<Profile, Error> {
    let mut names = Names::default();
    let mut profile = Profile::default();
    let mut alone: HashMap<String, u64> = HashMap::new();
    let (mut function, mut callee, mut is_call) = (String::new(), String::new(), false);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = names.resolve(name)?;
        } else if let Some(name) = line.strip_prefix("cfn=") {
            callee = names.resolve(name)?;
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            // A position, and what was counted there.
            let count = line.split_whitespace().nth(1).map_or(Ok(0), str::parse::<u64>)?;
            if std::mem::take(&mut is_call) {
                if callee.contains(network) && !function.contains(network) {
                    profile.network += count;
                }
            } else {
                profile.total += count;
                *alone.entry(function.clone()).or_default() += count;
            }
        }
    }
    alone.retain(|name, count| *count > 0 && !name.contains(network));
    profile.functions = alone.into_iter().collect();
    profile
        .functions
        .sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use super::read;

    const PROFILE: &str = "\
# callgrind format
version: 1
positions: line
events: Ir

ob=(1) /bin/bench
fl=(1) client.rs
fn=(1) client::get
16 400
cfn=(2) <net::Data as Post>::post
calls=2 30
+3 150
cfn=(3) memcpy
calls=1 0
* 60

fn=(2)
30 100
cfi=(2) libc
cfn=(3)
calls=2 0
-1 50

fn=(3)
0 110

totals: 660
";

    #[test]
    fn the_network_is_taken_out_with_what_it_called() {
        let profile = read(PROFILE, "net::").unwrap();
        assert_eq!(profile.total, 400 + 100 + 110);
        assert_eq!(profile.network, 150);
        let functions: Vec<_> = profile
            .functions
            .iter()
            .map(|(name, count)| (name.as_str(), *count))
            .collect();
        assert_eq!(functions, [("client::get", 400), ("memcpy", 110)]);
    }

    #[test]
    fn a_profile_that_makes_no_sense_is_refused() {
        assert!(read("fn=(7)\n", "net::").is_err());
        assert!(read("fn=oops\n", "net::").is_err());
    }
}
