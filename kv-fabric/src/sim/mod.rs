//! The `sim` answer.
