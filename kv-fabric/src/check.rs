//! What every answer checks alike.

use std::io;

use crate::{FabricError, Read, Region, SCATTER_MAX, Scatter};

/// The bytes that a batch asks for.
///
/// # Errors
/// [`FabricError::Post`] with `posted` 0 if a READ is longer than `read_max_bytes`, its first piece is empty, or a piece is
/// not inside one of `regions`.
pub(crate) fn batch_bytes(
    reads: &[Read],
    regions: &[&Region],
    read_max_bytes: usize,
) -> Result<u64, FabricError> {
    let mut total = 0;
    for read in reads {
        let bytes = read.len_bytes();
        if bytes > read_max_bytes || !is_whole(read, regions) {
            return Err(FabricError::Post {
                posted: 0,
                source: io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "READ {} must go to 1 to {SCATTER_MAX} pieces, the first not empty, inside their regions, of \
                         {read_max_bytes} bytes at most together",
                        read.number
                    ),
                ),
            });
        }
        total += bytes as u64;
    }
    Ok(total)
}

/// Whether the pieces of a READ are as the seam wants them.
fn is_whole(read: &Read, regions: &[&Region]) -> bool {
    let is_inside = |piece: &Scatter| {
        let end = piece.offset.checked_add(piece.len as usize);
        let region = regions.get(piece.region as usize);
        end.zip(region)
            .is_some_and(|(end, region)| end <= region.memory().len())
    };
    read.to[0].len > 0 && read.pieces().iter().all(is_inside)
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
