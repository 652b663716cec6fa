//! Values that say which key, version and dataset they are of, in every byte.

/// Length of what a value begins with: generation of the dataset, key, version.
const HEAD_BYTES: usize = 16;

/// In the generation of a dataset: its values are longer, by [`LONGER_BYTES`] as a rule.
pub(super) const LONG: u64 = 1 << 63;
/// See [`LONG`].
pub(super) const LONGER_BYTES: usize = 800;

/// SplitMix64's finish: every bit of the result hangs on every bit of `x`.
pub(super) const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// One version of one key of one dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) generation: u64,
    pub(super) key: u32,
    /// From 1; 0 is before the first.
    pub(super) number: u32,
}

impl Version {
    const fn seed(self) -> u64 {
        mix(mix(self.generation) ^ ((self.key as u64) << 32 | self.number as u64))
    }

    /// Whether the version is a delete: one in six.
    pub(super) const fn is_delete(self) -> bool {
        self.number == 0 || (self.number > 1 && self.seed().is_multiple_of(6))
    }

    /// Length of its value: short as a rule, now and then of several cache lines, rarely of two blocks.
    const fn len(self) -> usize {
        let seed = self.seed() >> 8;
        let longer = if self.generation & LONG == 0 {
            0
        } else {
            LONGER_BYTES
        };
        match seed % 8192 {
            0 => 70_000,
            1..=16 => 3000,
            _ => HEAD_BYTES + longer + (seed >> 13) as usize % 160,
        }
    }

    fn head(self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(&self.generation.to_le_bytes());
        head[8..12].copy_from_slice(&self.key.to_le_bytes());
        head[12..].copy_from_slice(&self.number.to_le_bytes());
        head
    }

    /// Bytes behind the head, eight at a time.
    fn pattern(self) -> impl Iterator<Item = [u8; 8]> {
        let seed = self.seed();
        (1_u64..).map(move |index| mix(seed ^ index).to_le_bytes())
    }

    /// Its value.
    pub(super) fn value(self) -> Vec<u8> {
        let len = self.len();
        let mut value = Vec::with_capacity(len + 8);
        value.extend_from_slice(&self.head());
        for word in self.pattern() {
            if value.len() >= len {
                break;
            }
            value.extend_from_slice(&word);
        }
        value.truncate(len);
        value
    }

    /// The version that `value` is of; what is wrong where a byte is no version's.
    pub(super) fn tell(value: &[u8]) -> Result<Self, String> {
        let Some((head, rest)) = value.split_first_chunk::<HEAD_BYTES>() else {
            return Err(format!("a value of {} bytes", value.len()));
        };
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let version = Self {
            generation: u64::from(word(4)) << 32 | u64::from(word(0)),
            key: word(8),
            number: word(12),
        };
        if value.len() != version.len() {
            return Err(format!("{} bytes that begin as {version:?}", value.len()));
        }
        for (index, (chunk, want)) in rest.chunks(8).zip(version.pattern()).enumerate() {
            if *chunk != want[..chunk.len()] {
                let at = HEAD_BYTES + index * 8;
                return Err(format!("not {version:?} from byte {at} on: {chunk:02x?}"));
            }
        }
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::{LONG, Version};

    #[test]
    fn a_value_tells_its_version_and_any_other_byte_shows() {
        for number in 1..40 {
            let version = Version {
                generation: if number < 20 { 3 } else { LONG | 3 },
                key: 77,
                number,
            };
            let mut value = version.value();
            assert_eq!(Version::tell(&value), Ok(version));
            for at in 0..value.len() {
                value[at] ^= 1;
                assert_ne!(Version::tell(&value), Ok(version), "byte {at}");
                value[at] ^= 1;
            }
            value.pop();
            assert!(Version::tell(&value).is_err());
        }
    }
}
