//! The table: each figure beside its baseline from the same run.

use std::fmt;

/// What a number counts.
#[derive(Debug, Clone, Copy)]
pub enum Unit {
    /// Things in a second.
    PerSecond,
    /// Milliseconds.
    Ms,
    /// Millions of bytes in a second.
    MegabytesPerSecond,
    /// Mebibytes.
    Mib,
}

/// What we want to reach.
#[derive(Debug, Clone, Copy)]
pub enum Aim {
    /// At least this much.
    AtLeast(f64),
    /// At most this much.
    AtMost(f64),
    /// At most so many times the baseline.
    RatioAtMost(f64),
}

/// One figure.
pub struct Row<'a> {
    /// What was measured.
    pub figure: &'a str,
    /// In which unit, the baseline too.
    pub unit: Unit,
    /// What we reached.
    pub measured: f64,
    /// What was reached without us, and what that is.
    pub baseline: Option<(f64, &'a str)>,
    /// What we want to reach.
    pub aim: Option<Aim>,
}

struct Amount(f64, Unit);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value, unit) = *self;
        let text = match unit {
            Unit::PerSecond => format!("{} /s", thousands(value)),
            Unit::Ms if value < 10.0 => format!("{value:.2} ms"),
            Unit::Ms if value < 100.0 => format!("{value:.1} ms"),
            Unit::Ms => format!("{value:.0} ms"),
            Unit::MegabytesPerSecond => format!("{value:.0} MB/s"),
            Unit::Mib => format!("{value:.1} MiB"),
        };
        f.pad(&text)
    }
}

fn thousands(value: f64) -> String {
    let whole = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Prints the columns' names, the machine and how busy it is: figures of a machine that has other
/// things to do are worth their ratios only.
pub fn print_head() {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "{}: {cores} cores, Linux {}, load before the start {}\n",
        jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC"),
        kernel.trim(),
        load.split(' ').next().unwrap_or("unknown"),
    );
    println!(
        "{:<46} {:>13} {:>13} {:>7}  {:<19} baseline",
        "figure", "baton", "baseline", "ratio", "aim"
    );
}

/// Begins a section.
pub fn print_section(name: &str) {
    println!("-- {name}");
}

/// Prints what a number cannot say.
pub fn print_note(text: &str) {
    println!("   {text}");
}

/// Prints one figure.
pub fn print(row: &Row<'_>) {
    let ratio = row.baseline.map(|(baseline, _)| row.measured / baseline);
    println!(
        "{:<46} {:>13} {:>13} {:>7}  {:<19} {}",
        row.figure,
        Amount(row.measured, row.unit),
        row.baseline
            .map_or(String::new(), |(it, _)| Amount(it, row.unit).to_string()),
        ratio.map_or(String::new(), |ratio| format!("{ratio:.2}x")),
        row.aim.map_or(String::new(), |aim| judged(aim, row, ratio)),
        row.baseline.map_or("", |(_, name)| name),
    );
}

fn judged(aim: Aim, row: &Row<'_>, ratio: Option<f64>) -> String {
    let (text, met) = match aim {
        Aim::AtLeast(least) => (
            format!("≥ {}", Amount(least, row.unit)),
            row.measured >= least,
        ),
        Aim::AtMost(most) => (
            format!("≤ {}", Amount(most, row.unit)),
            row.measured <= most,
        ),
        Aim::RatioAtMost(most) => (
            format!("≤ {most:.2}x"),
            ratio.is_some_and(|ratio| ratio <= most),
        ),
    };
    format!("{text} {}", if met { "met" } else { "missed" })
}

/// The value that the fraction `part` of `sorted` do not exceed; 0 of nothing.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}
