//! The benchmarks of the scheduler: how good its order is, and what deciding costs.
//!
//! `cargo bench --package baton-domain --bench schedule -- [SECTION…]`; see `docs/benchmarks.md`.
//! Nothing outside of this process is touched.

mod choosing;
mod graphs;
mod makespan;
mod simulation;

use std::process::ExitCode;

const SECTIONS: [(&str, fn()); 2] = [("makespan", makespan::run), ("choose", choosing::run)];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let known = |word: &String| SECTIONS.iter().any(|(name, _)| name == word);
    if let Some(unknown) = words.iter().find(|word| !known(word)) {
        let names = SECTIONS.map(|(name, _)| name).join(" ");
        eprintln!("bench: there is no section {unknown}; there are: {names}");
        return ExitCode::FAILURE;
    }
    for (name, section) in SECTIONS {
        if words.is_empty() || words.iter().any(|word| word == name) {
            println!("-- {name}");
            section();
        }
    }
    ExitCode::SUCCESS
}

/// Whether an aim was reached, in the words of the other benchmarks.
fn judged(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}
