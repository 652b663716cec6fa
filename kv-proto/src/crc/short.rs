//! CRC32C of few bytes, by the processor's instruction for eight of them: what `crc-fast` sees to before it begins costs more
//! than they do.
//!
//! # Safety
//! The instruction is of SSE 4.2: the one unsafe call here is made only where the processor was found to have that.
#![allow(unsafe_code)]

/// Longest that it pays for, bytes: from there on taking several words at once does.
#[cfg(target_arch = "x86_64")]
const MAX_BYTES: usize = 384;

/// CRC32C of `first` and of `second` behind it; `None` where that is for others to say.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn crc32c<const FIRST: usize>(first: &[u8; FIRST], second: &[u8]) -> Option<u32> {
    if second.len() > MAX_BYTES || !std::arch::is_x86_feature_detected!("sse4.2") {
        return None;
    }
    // SAFETY: the processor has SSE 4.2, as was just looked up, and the function asks for nothing else.
    Some(unsafe { of_both(first, second) })
}

/// On other processors it is for others to say.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(super) fn crc32c<const FIRST: usize>(_: &[u8; FIRST], _: &[u8]) -> Option<u32> {
    None
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn of_both<const FIRST: usize>(first: &[u8; FIRST], second: &[u8]) -> u32 {
    let (lines, mut rest) = second.as_chunks::<64>();
    let mut crc = update(u32::MAX, first);
    for line in lines {
        crc = update(crc, line);
    }
    // Half of what may be left, and half of that; keys often end with the second.
    if !rest.is_empty() {
        take::<32>(&mut crc, &mut rest);
        take::<16>(&mut crc, &mut rest);
    }
    if !rest.is_empty() {
        take::<8>(&mut crc, &mut rest);
        take::<4>(&mut crc, &mut rest);
        take::<2>(&mut crc, &mut rest);
        take::<1>(&mut crc, &mut rest);
    }
    !crc
}

/// Takes the first `COUNT` of `bytes`, where there are that many.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse4.2")]
fn take<const COUNT: usize>(crc: &mut u32, bytes: &mut &[u8]) {
    if let Some((first, rest)) = bytes.split_first_chunk::<COUNT>() {
        (*crc, *bytes) = (update(*crc, first), rest);
    }
}

/// Takes bytes whose number is known when this is compiled: nothing is looked up and nothing counted.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse4.2")]
fn update<const COUNT: usize>(crc: u32, bytes: &[u8; COUNT]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64};

    let (words, rest) = bytes.as_chunks();
    let (halves, rest) = rest.as_chunks();
    let mut crc = u64::from(crc);
    for word in words {
        crc = _mm_crc32_u64(crc, u64::from_le_bytes(*word));
    }
    let mut crc = crc as u32;
    for half in halves {
        crc = _mm_crc32_u32(crc, u32::from_le_bytes(*half));
    }
    for byte in rest {
        crc = _mm_crc32_u8(crc, *byte);
    }
    crc
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use crc_fast::crc32_iscsi;

    use super::*;

    /// Of every length, from every place in a word on.
    #[test]
    fn they_are_those_of_the_other_implementation() {
        let bytes: Vec<u8> = (0..3 * MAX_BYTES as u64)
            .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        let has = std::arch::is_x86_feature_detected!("sse4.2");
        for start in 0..64 {
            for len in 0..=MAX_BYTES {
                let one = &bytes[start..start + len];
                assert_eq!(
                    crc32c(&[], one),
                    has.then(|| crc32_iscsi(one)),
                    "{len} at {start}"
                );
                let both = &bytes[start..start + 60 + len];
                let (first, second) = both.split_first_chunk::<60>().unwrap();
                let expected = has.then(|| crc32_iscsi(both));
                assert_eq!(crc32c(first, second), expected, "60 and {len} at {start}");
                let (first, second) = both.split_first_chunk::<7>().unwrap();
                assert!(second.len() > MAX_BYTES || crc32c(first, second) == expected);
            }
            assert_eq!(crc32c(&[], &bytes[start..start + MAX_BYTES + 1]), None);
        }
    }
}
