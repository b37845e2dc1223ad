//! Logging: journald when connected to it, else standard error.
