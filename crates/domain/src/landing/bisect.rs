//! Which of several merged results makes the gate red, with as few runs as there can be.

/// What is known after the answers so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// All of it is green.
    Green,
    /// The gate must be run at this place.
    Ask(usize),
    /// Green before this place, red at it.
    Culprit(usize),
    /// Red without any of the results.
    RedBefore,
}

/// Reads the answers to a row of `commits`: the bare tip, then one result more at each place.
///
/// Looks for the first red place as if every place before it were green and every one after it
/// red. The bare tip is believed to be green until the first result turns out to be red.
pub(super) fn find(commits: &[&str], is_green: impl Fn(&str) -> Option<bool>) -> Finding {
    let top = commits.len() - 1;
    match is_green(commits[top]) {
        None => return Finding::Ask(top),
        Some(true) => return Finding::Green,
        Some(false) if top == 0 => return Finding::RedBefore,
        Some(false) => {}
    }
    let known = |at: usize| is_green(commits[at]);
    let green = (0..top).rev().find(|&at| known(at) == Some(true));
    let low = green.unwrap_or(0);
    let high = (low + 1..=top)
        .find(|&at| known(at) == Some(false))
        .unwrap_or(top);
    if high - low > 1 {
        return Finding::Ask(low + (high - low) / 2);
    }
    match (low, known(low)) {
        (_, Some(true)) => Finding::Culprit(high),
        (_, Some(false)) => Finding::RedBefore,
        (low, None) => Finding::Ask(low),
    }
}
