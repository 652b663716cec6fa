//! Control frames.

use kv_proto::control::*;
use kv_proto::layout::PROTOCOL_VERSION;
use proptest::prelude::*;

use crate::{Filler, check};

/// Decodes `frame` both ways; what decodes must encode to the very same bytes.
fn decode_any(frame: &[u8]) -> Result<bool, TestCaseError> {
    let mut again = Vec::new();
    let mut accepted = false;
    if let Ok((header, request)) = decode_request(frame) {
        encode_request(header.request, &request, &mut again)?;
        again[1] = frame[1];
        prop_assert_eq!(&again, frame);
        accepted = true;
    }
    if let Ok((header, answer)) = decode_answer(frame) {
        prop_assert!(!accepted, "a frame is a request or an answer");
        if let Ok(answer) = answer {
            encode_answer(header.request, &answer, &mut again)?;
            again[1] = frame[1];
            prop_assert_eq!(&again, frame);
        }
        accepted = true;
    }
    Ok(accepted)
}

#[test]
fn every_frame_comes_back_from_its_bytes() {
    check(any::<u64>(), |seed| {
        let mut filler = Filler(seed);
        let sides = [(Request::SCHEMA, 0), (Answer::SCHEMA, ANSWER)];
        for (schema, flag) in sides {
            for (kind, name, fields) in schema {
                let frame = filler.frame(kind | flag, fields);
                prop_assert!(
                    frame.len() <= FRAME_MAX_BYTES,
                    "{} is {} bytes",
                    name,
                    frame.len()
                );
                prop_assert!(decode_any(&frame)?, "{} is refused", name);
                let cut = filler.below(frame.len() as u64) as usize;
                prop_assert!(!decode_any(&frame[..cut])?, "{} cut to {}", name, cut);
                let longer = [&frame[..], &[0]].concat();
                prop_assert!(!decode_any(&longer)?, "{} with a byte behind it", name);
            }
        }
        Ok(())
    });
}

#[test]
fn bytes_that_are_no_frame_never_panic() {
    let mutations = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8);
    check((any::<u64>(), mutations), |(seed, mutations)| {
        let mut filler = Filler(seed);
        let schemas = [(Request::SCHEMA, 0), (Answer::SCHEMA, ANSWER)];
        for (schema, flag) in schemas {
            let (kind, _, fields) = schema[filler.below(schema.len() as u64) as usize];
            let mut frame = filler.frame(kind | flag, fields);
            for (at, byte) in &mutations {
                let at = at.index(frame.len());
                frame[at] = *byte;
                // The length is made right again, so that the payload is reached.
                let len = (frame.len() - FRAME_HEADER_BYTES) as u32;
                frame[4..8].copy_from_slice(&len.to_le_bytes());
                decode_any(&frame)?;
            }
        }
        Ok(())
    });
    check(prop::collection::vec(any::<u8>(), 0..5000), |mut bytes| {
        decode_any(&bytes)?;
        if bytes.len() > FRAME_HEADER_BYTES {
            let len = (bytes.len() - FRAME_HEADER_BYTES) as u32;
            bytes[0] = (bytes[0] % 27 + 1) | (bytes[0] & ANSWER);
            bytes[1] = PROTOCOL_VERSION as u8;
            bytes[2..4].copy_from_slice(&[0, 0]);
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
            decode_any(&bytes)?;
        }
        Ok(())
    });
}
