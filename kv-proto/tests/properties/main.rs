//! What must hold for any bytes: decoders and judges never panic, what they accept is what was written, and one wrong
//! bit is one too many.
//!
//! A failure prints its seed; `VKV_SEED=<seed> cargo test -p kv-proto --test properties` replays it.
//! `VKV_CASES` sets the number of cases.

#[path = "../common/mod.rs"]
mod common;
mod footers;
mod frames;
mod index;
mod judges;
mod parts;
mod records;
mod segment_list;

use std::hash::{BuildHasher, RandomState};

use kv_proto::control::WIRE_STRUCTS;
use kv_proto::layout::{DIRECTORY_DEPTH_MAX, PROTOCOL_VERSION};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

/// Runs `test` on cases of `strategy`; the seed is printed first, so a failure shows it.
pub(crate) fn check<S: Strategy>(strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>)
where
    S::Value: std::fmt::Debug,
{
    let from_env = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = from_env("VKV_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("VKV_SEED={seed}");
    let mut runner = TestRunner::new(ProptestConfig {
        rng_seed: RngSeed::Fixed(seed),
        cases: from_env("VKV_CASES").map_or(512, |cases| cases as u32),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    if let Err(failure) = runner.run(&strategy, test) {
        panic!("VKV_SEED={seed}: {failure}");
    }
}

/// SplitMix64: enough to fill payloads from one number.
pub(crate) struct Filler(pub(crate) u64);

impl Filler {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn raw(&mut self, len: usize, out: &mut Vec<u8>) {
        out.extend((0..len).map(|_| self.next() as u8));
    }

    /// Any bytes that a field of this type may be, by the words of PROTOCOL.md 4.2 alone.
    fn field(&mut self, name: &str, ty: &str, out: &mut Vec<u8>) {
        if name == "depth" {
            return out.push(self.below(u64::from(DIRECTORY_DEPTH_MAX) + 1) as u8);
        }
        let inner = |prefix: &str, end: &str| ty.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(end));
        if let Some(item) = inner("Vec<", ">") {
            let count = self.below(4);
            out.extend_from_slice(&(count as u16).to_le_bytes());
            (0..count).for_each(|_| self.field("", item, out));
        } else if let Some(len) = inner("[u8; ", "]") {
            self.raw(len.parse().expect("a length"), out);
        } else if let Some((_, fields)) = WIRE_STRUCTS.iter().find(|(name, _)| *name == ty) {
            fields.iter().for_each(|(name, ty)| self.field(name, ty, out));
        } else {
            match ty {
                "u8" => self.raw(1, out),
                "u16" => self.raw(2, out),
                "u32" => self.raw(4, out),
                "u64" => self.raw(8, out),
                "Locator" => self.raw(16, out),
                "Bytes" => {
                    let len = self.below(200);
                    out.extend_from_slice(&(len as u16).to_le_bytes());
                    self.raw(len as usize, out);
                }
                other => panic!("the type {other} is not in PROTOCOL.md"),
            }
        }
    }

    pub(crate) fn frame(&mut self, kind: u8, fields: &[(&str, &str)]) -> Vec<u8> {
        let mut payload = Vec::new();
        fields
            .iter()
            .for_each(|(name, ty)| self.field(name, ty, &mut payload));
        let mut frame = vec![kind, PROTOCOL_VERSION as u8, 0, 0];
        frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        self.raw(8, &mut frame);
        frame.extend_from_slice(&payload);
        frame
    }
}
