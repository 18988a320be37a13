//! What a sandbox may reach, and nothing else: the model API and the one repository.

pub mod git;
pub mod model;
