//! A stand-in for the Messages API.
fn main() {}
