//! The `local` answer.
