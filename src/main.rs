//! Fieldpost.
fn main() {}
