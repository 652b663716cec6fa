//! What every answer checks alike.

use std::io;

use crate::{FabricError, Read, SCATTER_MAX};

/// The bytes that a batch asks for.
///
/// # Errors
/// [`FabricError::Post`] with `posted` 0 if a READ is longer than `read_max_bytes`, has no piece or too many, or a
/// piece is empty or not inside its region.
pub(crate) fn batch_bytes(reads: &[Read<'_>], read_max_bytes: usize) -> Result<u64, FabricError> {
    let mut total = 0;
    for read in reads {
        let bytes = read_bytes(read)
            .filter(|&bytes| bytes <= read_max_bytes)
            .ok_or_else(|| FabricError::Post {
                posted: 0,
                source: io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "READ {} must go to 1 to {SCATTER_MAX} pieces, none empty, inside their regions, of \
                         {read_max_bytes} bytes at most together",
                        read.number
                    ),
                ),
            })?;
        total += bytes as u64;
    }
    Ok(total)
}

/// Length of a READ; `None` if a piece is not as the seam wants it.
fn read_bytes(read: &Read<'_>) -> Option<usize> {
    if read.to.is_empty() || read.to.len() > SCATTER_MAX {
        return None;
    }
    read.to.iter().try_fold(0_usize, |sum, piece| {
        let end = piece.offset.checked_add(piece.len)?;
        (piece.len > 0 && end <= piece.region.memory().len())
            .then(|| sum.checked_add(piece.len))
            .flatten()
    })
}

/// Whether memory of the caller's can be of this length.
///
/// # Errors
/// [`FabricError::Memory`] if not.
pub(crate) fn registered_len(len: usize) -> Result<(), FabricError> {
    if len > 0 && isize::try_from(len).is_ok() {
        return Ok(());
    }
    Err(FabricError::Memory {
        action: "register",
        len_bytes: len,
        source: io::ErrorKind::InvalidInput.into(),
        remedy: "register at least one byte and no more than an object has".to_owned(),
    })
}

/// As much of a text as has at most `bytes_max` bytes.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("short", 10), "short");
        assert_eq!(cut("short", 3), "sho");
        assert_eq!(cut("a\u{20ac}b", 3), "a");
        assert_eq!(cut("a\u{20ac}b", 4), "a\u{20ac}");
    }
}
