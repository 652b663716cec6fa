//! The `verbs` answer.
