//! Control frames from anybody: no decoder panics, and what decodes encodes to the same bytes.
#![no_main]

use kv_proto::control::{
    ANSWER, FRAME_HEADER_BYTES, decode_answer, decode_request, encode_answer, encode_request, split_frame,
};
use kv_proto::layout::PROTOCOL_VERSION;
use libfuzzer_sys::fuzz_target;

fn round_trip(frame: &[u8]) {
    let _ = split_frame(frame);
    let mut again = Vec::new();
    if let Ok((header, request)) = decode_request(frame) {
        encode_request(header.request, &request, &mut again).expect("what was decoded fits a frame");
        again[1] = frame[1];
        assert_eq!(again, frame);
    }
    if let Ok((header, Ok(answer))) = decode_answer(frame) {
        encode_answer(header.request, &answer, &mut again).expect("what was decoded fits a frame");
        again[1] = frame[1];
        assert_eq!(again, frame);
    }
}

fuzz_target!(|bytes: &[u8]| {
    round_trip(bytes);
    // The same bytes as the payload of a frame with a sound header, so that payloads are reached at once.
    if let [kind, payload @ ..] = bytes {
        let mut frame = vec![*kind, PROTOCOL_VERSION as u8, 0, 0];
        frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        frame.resize(FRAME_HEADER_BYTES, 0);
        frame.extend_from_slice(payload);
        round_trip(&frame);
        frame[0] ^= ANSWER;
        round_trip(&frame);
    }
});
