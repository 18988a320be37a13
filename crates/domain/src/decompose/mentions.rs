//! What one piece of a text mentions: components, what is denied, what is to be done.

use super::component::Component;
use super::vocabulary::{Hit, Meaning, hits};
use super::words::{Gap, Words};
use crate::project::Kind;

/// Words between a component and what dismisses it: "the backend is already there".
const DISMISSED_WITHIN: usize = 3;
/// Words between "don't break" and what is spared.
const SPARED_WITHIN: usize = 4;
/// Words between "when" and a component in its clause.
const CONDITION_WORDS_MAX: usize = 6;

/// A set of components.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Components(u8);

impl Components {
    pub fn insert(&mut self, component: Component) {
        self.0 |= 1 << component as u8;
    }

    pub fn contains(self, component: Component) -> bool {
        self.0 & (1 << component as u8) != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Component> {
        Component::ALL
            .into_iter()
            .filter(move |of| self.contains(*of))
    }

    pub fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What a section or a piece is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It says what is wanted.
    Demand,
    /// It says how, or by which measure.
    Frame,
    /// It says what was seen.
    Observation,
    /// It says what is not wanted.
    Exclusion,
}

/// What a piece mentions.
#[derive(Debug, Default)]
pub(super) struct Mentions {
    /// The components it asks for, in the order of their first mention.
    pub claims: Vec<Component>,
    /// Components that are not wanted at all.
    pub excluded: Components,
    /// What it is there for, when it says so at its beginning.
    pub role: Option<Role>,
    /// An analysis or a review, when it begins by asking for one and for nothing else.
    pub asks: Option<Kind>,
    /// Whether something is to be made or changed.
    pub makes: bool,
    /// Whether it says what is the case, and nothing of what is to be made.
    pub states: bool,
    /// Whether it begins as a rule for the work.
    pub rules: bool,
    /// How much it says that there is an order.
    pub orders: usize,
    /// Whether it says that its parts are independent.
    pub separates: bool,
    /// How many words it has.
    pub words: usize,
}

/// One mention of components.
struct Mention {
    components: &'static [Component],
    names: bool,
    first: usize,
    last: usize,
    wanted: bool,
    denied: bool,
}

impl Mentions {
    pub fn of(text: &str) -> Self {
        let words = Words::of(text);
        let hits = hits(&words);
        let mut this = Self {
            words: words.len(),
            ..Self::default()
        };
        this.read_beginning(&words, &hits);
        for hit in &hits {
            match hit.meaning {
                Meaning::Makes => this.makes = true,
                Meaning::States => this.states = true,
                Meaning::Orders(weight) => this.orders += weight,
                Meaning::Separates => this.separates = true,
                _ => {}
            }
        }
        if this.makes {
            this.states = false;
            this.asks = None;
        }
        let mentions = mentions(&words, &hits);
        for mention in &mentions {
            for &component in mention.components {
                if mention.wanted && !this.claims.contains(&component) {
                    this.claims.push(component);
                }
                if mention.denied {
                    this.excluded.insert(component);
                }
            }
        }
        if let Some(subject) = subject(&words, &mentions) {
            this.claims = vec![subject];
        }
        this
    }

    fn read_beginning(&mut self, words: &Words, hits: &[Hit]) {
        let Some(hit) = hits.first().filter(|hit| hit.first == 0) else {
            return;
        };
        let heads = hit.last + 1 == words.len()
            || words
                .word(hit.last + 1)
                .is_some_and(|word| word.gap == Gap::Break);
        match hit.meaning {
            Meaning::HeadsObservation if heads => self.role = Some(Role::Observation),
            Meaning::HeadsFrame if heads => self.role = Some(Role::Frame),
            Meaning::HeadsExclusion if heads => self.role = Some(Role::Exclusion),
            Meaning::Asks(kind) => self.asks = Some(kind),
            Meaning::Rules | Meaning::Denies(_) | Meaning::Spares => self.rules = true,
            _ => {}
        }
    }
}

/// All mentions, with those denied, dismissed or only pointed at found out.
fn mentions(words: &Words, hits: &[Hit]) -> Vec<Mention> {
    let mut mentions: Vec<Mention> = Vec::new();
    // The end of a phrase that says something of what follows, how many words it reaches, across
    // which gap, and whether it denies.
    let mut reach: Option<(usize, usize, Gap, bool)> = None;
    for hit in hits {
        match hit.meaning {
            Meaning::Denies(words_max) => reach = Some((hit.last, words_max, Gap::Comma, true)),
            Meaning::Spares => reach = Some((hit.last, SPARED_WITHIN, Gap::Comma, false)),
            Meaning::Conditions => {
                reach = Some((hit.last, CONDITION_WORDS_MAX, Gap::Space, false));
            }
            Meaning::Names(components) | Meaning::Made(components) => {
                let names = matches!(hit.meaning, Meaning::Names(_));
                let reached = reach.filter(|(end, words_max, across, _)| {
                    hit.first - end - 1 <= *words_max
                        && words.gap_within(end + 1, hit.first) <= *across
                });
                mentions.push(Mention {
                    components,
                    names,
                    first: hit.first,
                    last: hit.last,
                    wanted: reached.is_none(),
                    denied: names && reached.is_some_and(|(.., denies)| denies),
                });
                if reached.is_some() {
                    reach = None;
                }
            }
            Meaning::Dismisses | Meaning::HeadsExclusion => dismiss(&mut mentions, words, hit),
            _ => {}
        }
    }
    spread_denials(&mut mentions, words);
    point_at_places(&mut mentions, words);
    leave_endpoints_to_login(&mut mentions, words);
    mentions
}

/// Whether a clause ends between two words.
fn parted(words: &Words, before: usize, after: usize) -> bool {
    words.gap_within(before + 1, after) == Gap::Break
}

fn dismiss(mentions: &mut [Mention], words: &Words, hit: &Hit) {
    let Some(last) = mentions.last_mut() else {
        return;
    };
    if hit.first - last.last - 1 <= DISMISSED_WITHIN && !parted(words, last.last, hit.first) {
        last.wanted = false;
        last.denied = last.names;
    }
}

/// "no frontend, login or deployment" denies all three; of neighbours as in "no frontend tests"
/// the last one is what is denied, and the others only say which.
fn spread_denials(mentions: &mut [Mention], words: &Words) {
    let mut at = 0;
    while at < mentions.len() {
        if mentions[at].wanted
            || at > 0 && joined(&mentions[at - 1], &mentions[at], words).is_some()
        {
            at += 1;
            continue;
        }
        let denies = mentions[at].denied || !mentions[at].names;
        // The end of the run, and the end of what the last "or" in it closes.
        let mut end = at;
        let mut closed = at;
        while end + 1 < mentions.len() {
            let Some(join) = joined(&mentions[end], &mentions[end + 1], words)
                .filter(|join| *join != Join::ConjunctionWithArticle)
            else {
                break;
            };
            end += 1;
            if join != Join::Comma {
                closed = end;
            }
        }
        for index in at..=closed {
            let names_more = index < closed
                && joined(&mentions[index], &mentions[index + 1], words) == Some(Join::Neighbour);
            let mention = &mut mentions[index];
            mention.wanted = false;
            mention.denied = denies && mention.names && !names_more;
        }
        at = closed + 1;
    }
    // "the React app and the API already exist": what hangs together with it goes with it, and what
    // stands right before it belongs to it.
    for index in (1..mentions.len()).rev() {
        let (before, after) = (&mentions[index - 1], &mentions[index]);
        let join = joined(before, after, words);
        if after.wanted || join.is_none_or(|join| join == Join::Comma) {
            continue;
        }
        let denied = mentions[index].denied && join != Some(Join::Neighbour);
        let before = &mut mentions[index - 1];
        before.denied |= before.wanted && before.names && denied;
        before.wanted = false;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    Neighbour,
    Comma,
    Conjunction,
    ConjunctionWithArticle,
}

/// How two mentions hang together, if nothing else stands between them.
fn joined(before: &Mention, after: &Mention, words: &Words) -> Option<Join> {
    const CONJUNCTIONS: &[&str] = &[
        "and", "or", "nor", "und", "oder", "noch", "et", "ou", "ni", "y", "o", "e",
    ];
    const ARTICLES: &[&str] = &[
        "the", "our", "der", "die", "das", "den", "unsere", "el", "la", "los", "las", "le", "les",
    ];
    let between = after.first - before.last - 1;
    match (between, words.gap_within(before.last + 1, after.first)) {
        (_, Gap::Break) => None,
        (0, Gap::Space) => Some(Join::Neighbour),
        (0, Gap::Comma) => Some(Join::Comma),
        (1, _) if CONJUNCTIONS.contains(&words.folded_word(before.last + 1)) => {
            Some(Join::Conjunction)
        }
        (2, _)
            if CONJUNCTIONS.contains(&words.folded_word(before.last + 1))
                && ARTICLES.contains(&words.folded_word(before.last + 2)) =>
        {
            Some(Join::ConjunctionWithArticle)
        }
        _ => None,
    }
}

/// "add login to the API" asks for a login; the API is where it goes.
fn point_at_places(mentions: &mut [Mention], words: &Words) {
    const TO: &[&str] = &["to", "into", "zur", "zum", "al", "au"];
    const BETWEEN: &[&str] = &[
        "the",
        "our",
        "my",
        "an",
        "a",
        "existing",
        "current",
        "whole",
        "bestehende",
        "bestehenden",
        "la",
        "l",
    ];
    for index in 1..mentions.len() {
        let (before, after) = (&mentions[index - 1], &mentions[index]);
        let between = before.last + 1..after.first;
        let same = before.components == after.components;
        if same || !before.wanted || between.is_empty() || between.len() > BETWEEN.len() {
            continue;
        }
        let mut has_to = false;
        let all = between.clone().all(|at| {
            let word = words.folded_word(at);
            has_to |= TO.contains(&word);
            TO.contains(&word) || BETWEEN.contains(&word)
        });
        if all && has_to && !parted(words, before.last, after.first) {
            let place = mentions[index].components;
            let follows = mentions[index + 1..]
                .iter()
                .take_while(|next| next.components == place);
            let end = index + 1 + follows.count();
            for mention in &mut mentions[index..end] {
                mention.wanted = false;
            }
        }
    }
}

/// "a login endpoint" is a part of the login.
fn leave_endpoints_to_login(mentions: &mut [Mention], words: &Words) {
    for index in 1..mentions.len() {
        let (before, after) = (&mentions[index - 1], &mentions[index]);
        let login = before.wanted && before.components == [Component::Authentication];
        let endpoint = !after.names && after.components == [Component::Api];
        if login && endpoint && joined(before, after, words) == Some(Join::Neighbour) {
            mentions[index].wanted = false;
        }
    }
}

/// Testing or deployment, where the piece begins with it and names other components only as its
/// object: "tests for the API", "deploy the frontend".
fn subject(words: &Words, mentions: &[Mention]) -> Option<Component> {
    let wanted: Vec<&Mention> = mentions.iter().filter(|mention| mention.wanted).collect();
    let first = *wanted.first()?.components.first()?;
    if !matches!(first, Component::Testing | Component::Deployment) {
        return None;
    }
    let other = wanted
        .iter()
        .position(|mention| !mention.components.contains(&first))?;
    let (before, after) = (wanted[other - 1], wanted[other]);
    const OBJECTS: &[&str] = &["for", "of", "fur", "fuer", "para", "pour", "von"];
    const LISTS: &[&str] = &["and", "und", "et", "y", "plus", "also", "sowie"];
    let between = before.last + 1..after.first;
    let stands_between = |list: &[&str]| {
        between
            .clone()
            .any(|at| list.contains(&words.folded_word(at)))
    };
    let listed = words.gap_within(before.last + 1, after.first) != Gap::Space
        || stands_between(LISTS)
        || between.is_empty();
    (!listed || stands_between(OBJECTS)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(text: &str, expected: Expect) {
        let mentions = Mentions::of(text);
        let claims = mentions.claims.iter().copied();
        let excluded = mentions.excluded.iter().map(|of| format!("not {of}"));
        let all: Vec<String> = claims.map(|of| of.to_string()).chain(excluded).collect();
        expected.assert_eq(&all.join(", "));
    }

    #[test]
    fn a_word_inside_a_word_or_a_phrase_says_nothing() {
        for harmless in [
            "restore the rest of the files",
            "the latest contest of testimonials",
            "react to a signal, then react quickly",
            "stay within the token budget",
            "a guide to building quietly",
            "capital, rapid, guidance, dockyard, author, authentic",
            "customer service and terms of service",
            "pas de problème d'un point de vue légal",
            "die Restaurants testieren",
        ] {
            check(harmless, expect![""]);
        }
    }

    #[test]
    fn the_same_word_says_something_elsewhere() {
        check("REST", expect!["api"]);
        check("a rest api", expect!["api"]);
        check("written in react", expect!["frontend"]);
        check("Express, Vue.js and Node", expect!["api, frontend"]);
        check("CI/CD", expect!["deployment"]);
        check("front-end", expect!["frontend"]);
        check("die Oberfläche", expect!["frontend"]);
        check("base de donne\u{301}es", expect!["database"]);
        check("Datenbankanbindung", expect!["database"]);
    }

    #[test]
    fn what_is_denied_is_not_wanted() {
        check("no frontend", expect!["not frontend"]);
        check(
            "an API without authentication",
            expect!["api, not authentication"],
        );
        check(
            "an API, but no frontend, login or deployment",
            expect!["api, not authentication, not frontend, not deployment"],
        );
        check("no frontend, just an API", expect!["api, not frontend"]);
        check("don't touch the existing database", expect!["not database"]);
        check("ohne Anmeldung", expect!["not authentication"]);
        check(
            "sin autenticación ni despliegue",
            expect!["not authentication, not deployment"],
        );
        check("une API sans interface web", expect!["api, not frontend"]);
        check("no frontend tests", expect!["not testing"]);
    }

    #[test]
    fn what_is_there_already_is_not_wanted() {
        check(
            "the backend already exists, add a UI",
            expect!["frontend, not api"],
        );
        check(
            "the login and the database are already there",
            expect!["not database, not authentication"],
        );
        check("tests are not needed", expect!["not testing"]);
        check("la API ya existe", expect!["not api"]);
        check("das Backend gibt es schon", expect!["not api"]);
    }

    #[test]
    fn a_denied_means_denies_no_component() {
        check("login without JWT", expect!["authentication"]);
        check("REST, no GraphQL", expect!["api"]);
        check("SQLite instead of Postgres", expect!["database"]);
    }

    #[test]
    fn what_is_lacking_is_wanted() {
        check("there are no tests", expect!["testing"]);
        check("es gibt noch keine Tests", expect!["testing"]);
        check("no hay pruebas", expect!["testing"]);
        check(
            "not only an API but also a frontend",
            expect!["api, frontend"],
        );
    }

    #[test]
    fn what_must_not_break_is_neither_wanted_nor_denied() {
        check("don't break the API", expect![""]);
        check("the existing tests must still pass", expect![""]);
    }

    #[test]
    fn an_object_is_no_demand() {
        check("unit tests for the API", expect!["testing"]);
        check("tests for: login, dashboard", expect!["testing"]);
        check("deploy the frontend and the API", expect!["deployment"]);
        check(
            "tests, an API and a frontend",
            expect!["testing, api, frontend"],
        );
        check("add login to the API", expect!["authentication"]);
        check("add login and an API", expect!["authentication, api"]);
    }

    #[test]
    fn a_circumstance_is_no_demand() {
        check(
            "the API returns 500 when the database is down",
            expect!["api"],
        );
        check("when users log in, show a dashboard", expect!["frontend"]);
        check("great if you add an API", expect!["api"]);
        check("a login endpoint", expect!["authentication"]);
    }

    #[test]
    fn places_are_not_read() {
        check(
            "see https://example.com/api/login or src/frontend/api.rs",
            expect![""],
        );
        check("ask api@example.com", expect![""]);
        check("```\nfrontend\n```\nand an API", expect!["api"]);
        check("POST /auth/login", expect!["authentication"]);
    }
}
