//! One-time tokens of one session: each lets one data connection into one dataset's domain.

use super::clock::BootMs;
use super::leases::DatasetId;

/// Length of a token, bytes.
pub const TOKEN_BYTES: usize = 16;
/// Tokens in one answer: what fits a frame.
pub const TOKENS_PER_ANSWER_MAX: u16 = 128;

#[derive(Debug, Clone, Hash)]
struct Token {
    secret: [u8; TOKEN_BYTES],
    dataset: DatasetId,
    expires: BootMs,
}

/// Those that were told and not used yet.
#[derive(Debug, Clone, Default, Hash)]
pub struct Tokens {
    told: Vec<Token>,
}

/// Whether two secrets are equal; looks at every byte whatever they hold.
fn same(a: &[u8; TOKEN_BYTES], b: &[u8; TOKEN_BYTES]) -> bool {
    let difference = a.iter().zip(b).fold(0, |found, (a, b)| found | (a ^ b));
    std::hint::black_box(difference) == 0
}

impl Tokens {
    /// How many are good now.
    pub fn len(&mut self, now: BootMs) -> usize {
        self.told.retain(|token| now < token.expires);
        self.told.len()
    }

    /// Adds one.
    pub fn add(&mut self, secret: [u8; TOKEN_BYTES], dataset: DatasetId, expires: BootMs) {
        self.told.push(Token {
            secret,
            dataset,
            expires,
        });
    }

    /// Uses one up; the dataset that it is good for.
    pub fn redeem(&mut self, secret: &[u8; TOKEN_BYTES], now: BootMs) -> Option<DatasetId> {
        let mut found = None;
        for (index, token) in self.told.iter().enumerate() {
            if same(&token.secret, secret) {
                found = Some(index);
            }
        }
        let token = self.told.swap_remove(found?);
        (now < token.expires).then_some(token.dataset)
    }

    /// Voids those of one dataset.
    pub fn void(&mut self, dataset: &DatasetId) {
        self.told.retain(|token| token.dataset != *dataset);
    }

    /// Voids all.
    pub fn void_all(&mut self) {
        self.told.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_and_not_for_ever() {
        let mut tokens = Tokens::default();
        tokens.add([1; 16], [7; 16], BootMs(10));
        tokens.add([2; 16], [8; 16], BootMs(10));
        assert_eq!(tokens.redeem(&[3; 16], BootMs(0)), None);
        assert_eq!(tokens.redeem(&[2; 16], BootMs(9)), Some([8; 16]));
        assert_eq!(tokens.redeem(&[2; 16], BootMs(9)), None);
        assert_eq!(tokens.redeem(&[1; 16], BootMs(10)), None);
        assert_eq!(tokens.len(BootMs(0)), 0);
    }

    #[test]
    fn a_dataset_that_was_closed_lets_nobody_in() {
        let mut tokens = Tokens::default();
        tokens.add([1; 16], [7; 16], BootMs(10));
        tokens.add([2; 16], [8; 16], BootMs(10));
        tokens.void(&[7; 16]);
        assert_eq!(tokens.redeem(&[1; 16], BootMs(0)), None);
        assert_eq!(tokens.len(BootMs(0)), 1);
        assert_eq!(tokens.len(BootMs(10)), 0);
    }
}
