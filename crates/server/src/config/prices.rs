//! What model calls cost, as far as can be told from tokens alone.

use std::collections::HashMap;

use serde::Deserialize;

/// US dollars for a million tokens of one family of models; in the file `[prices."opus-5"]`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Read, neither from nor into the cache.
    pub input: f64,
    /// Written by the model.
    pub output: f64,
    /// Read and written into the cache.
    pub cache_write: f64,
    /// Read from the cache.
    pub cache_read: f64,
}

/// Prices by family: a part of the model's name.
#[derive(Debug, Clone)]
pub struct Prices {
    by_family: HashMap<String, Price>,
}

/// What Claude Code 2.1.330 reckons with. A model that none of them names costs like the dearest,
/// so that a budget errs on the cautious side.
const KNOWN: &[(&str, Price)] = &[
    ("", DEAREST),
    ("opus", price(5.0, 25.0, 6.25, 0.5)),
    ("opus-5", price(4.0, 20.0, 5.0, 0.2)),
    ("sonnet", price(3.0, 15.0, 3.75, 0.3)),
    ("sonnet-5", price(2.0, 10.0, 2.5, 0.2)),
    ("haiku", price(1.0, 5.0, 1.25, 0.1)),
];

const DEAREST: Price = price(10.0, 50.0, 12.5, 1.0);

const fn price(input: f64, output: f64, cache_write: f64, cache_read: f64) -> Price {
    Price {
        input,
        output,
        cache_write,
        cache_read,
    }
}

impl Prices {
    /// The known prices, with `configured` in their place where a family has both.
    #[must_use]
    pub fn with(configured: HashMap<String, Price>) -> Self {
        let known = KNOWN
            .iter()
            .map(|(family, price)| ((*family).to_owned(), *price));
        Self {
            by_family: known.chain(configured).collect(),
        }
    }

    /// The price of a model: that of the longest family in its name.
    #[must_use]
    pub fn of(&self, model: &str) -> Price {
        let families = self.by_family.iter();
        let named = families.filter(|(family, _)| model.contains(family.as_str()));
        let longest = named.max_by_key(|(family, _)| family.len());
        longest.map_or(DEAREST, |(_, price)| *price)
    }
}

impl Default for Prices {
    fn default() -> Self {
        Self::with(HashMap::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_family_in_a_name_sets_the_price() {
        let configured = HashMap::from([("sonnet".to_owned(), price(9.0, 9.0, 9.0, 9.0))]);
        let prices = Prices::with(configured);
        let input = |model| prices.of(model).input;
        assert_eq!(input("claude-opus-5-5"), 4.0);
        assert_eq!(input("claude-opus-4-6"), 5.0);
        assert_eq!(input("claude-sonnet-4-6"), 9.0);
        assert_eq!(input("claude-sonnet-5"), 2.0);
        assert_eq!(input("claude-haiku-4-5-20251001"), 1.0);
        assert_eq!(input("something-new"), 10.0);
    }
}
