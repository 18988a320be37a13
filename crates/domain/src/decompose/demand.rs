//! What a text asks for: parts that can each be a session's work, and what is said of testing,
//! review and analysis.

use super::component::Component;
use super::mentions::{Components, Mentions, Role};
use super::pieces::{BOLD_DEPTH, Form, Outline, Piece, Section};
use crate::project::Kind;

/// Implementation sessions of one graph. More sessions than a person can follow, or an account can
/// pay, help nobody; what is beyond is put together with its neighbours.
pub(super) const IMPLEMENTATIONS_MAX: usize = 12;
/// Sessions that build one component side by side.
const SPLIT_MAX: usize = 6;
/// A piece with fewer words is no session of its own: "- users", "- Redis".
const WORDS_MIN: usize = 4;

/// Work for one implementation session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part<'a> {
    /// None where the text does not say.
    pub component: Option<Component>,
    /// The first line of the one piece it was made for; none for all of a component.
    pub feature: Option<&'a str>,
    /// How many more pieces were put together with that one.
    pub more: usize,
    /// The pieces of the text that concern it, in the text's order.
    pub texts: Vec<&'a str>,
    /// Where the first of them stands among all pieces.
    pub at: usize,
}

/// What a text asks for.
#[derive(Debug, Default)]
pub(super) struct Demand<'a> {
    /// In the text's order.
    pub parts: Vec<Part<'a>>,
    pub testing: Vec<&'a str>,
    pub review: Vec<&'a str>,
    pub analysis: Vec<&'a str>,
    pub excluded: Components,
    /// The text says that its pieces have an order, or numbers them.
    pub ordered: bool,
    pub numbered: bool,
    /// The text says that its pieces are independent of each other.
    pub separated: bool,
}

/// A piece with what it mentions and whom it belongs to.
struct Reading<'a> {
    piece: Piece<'a>,
    /// Of the section it stands in.
    heading: &'a str,
    /// It stands in a chapter of its own, and not just below a title.
    in_chapter: bool,
    mentions: Mentions,
    role: Role,
    /// The components it is work for.
    claims: Vec<Component>,
    /// Work for no known component.
    general: bool,
}

impl<'a> Demand<'a> {
    /// `context` says what there is: only what it denies is taken from it.
    pub fn of(text: &'a str, context: &str) -> Self {
        let outline = Outline::of(text);
        let sections = SectionReadings::of(&outline);
        let mut readings: Vec<Reading<'a>> = outline
            .pieces
            .iter()
            .map(|piece| sections.reading(*piece, &outline.sections[piece.section]))
            .collect();
        let mut this = Self::default();
        this.exclude(&readings);
        for piece in Outline::of(context).pieces {
            this.excluded.extend(Mentions::of(piece.text).excluded);
        }
        for reading in &mut readings {
            reading
                .claims
                .retain(|component| !this.excluded.contains(*component));
        }
        leave_to_pieces(&mut readings);
        find_general_work(&mut readings);
        this.collect(&readings);
        this.parts = parts(&readings);
        let only_around = this
            .parts
            .iter()
            .all(|part| part.component == Some(Component::Deployment));
        let asked = this.parts.len() + this.testing.len() + this.review.len() + this.analysis.len();
        if only_around && asked > 0 && find_what_is_tested(&mut readings) {
            this.parts = parts(&readings);
        }
        let demanded = readings
            .iter()
            .any(|reading| reading.role == Role::Demand && reading.is_work() && reading.builds());
        if let ([only], false) = (this.parts.as_mut_slice(), demanded) {
            // One word in a list of rules does not say what the whole is.
            only.component = None;
        }
        this
    }

    fn exclude(&mut self, readings: &[Reading<'a>]) {
        for reading in readings {
            match reading.role {
                Role::Observation => {}
                Role::Exclusion => {
                    for &component in &reading.claims {
                        self.excluded.insert(component);
                    }
                    self.excluded.extend(reading.mentions.excluded);
                }
                Role::Demand | Role::Frame => self.excluded.extend(reading.mentions.excluded),
            }
        }
    }

    fn collect(&mut self, readings: &[Reading<'a>]) {
        let mut orders = 0;
        let mut numbers = 0;
        for reading in readings.iter().filter(|reading| reading.is_work()) {
            let text = reading.piece.text;
            orders += reading.mentions.orders;
            self.separated |= reading.mentions.separates;
            match reading.mentions.asks {
                Some(Kind::Analysis) => self.analysis.push(text),
                Some(_) => self.review.push(text),
                None if reading.claims.contains(&Component::Testing) => self.testing.push(text),
                None => {}
            }
            numbers += usize::from(reading.piece.form == Form::Item { numbered: true });
        }
        // "First" alone may be anything: two such words make an order, or a plain one.
        self.ordered = orders > 1;
        self.numbered = numbers > 1;
    }
}

impl Reading<'_> {
    /// Whether it is work for an implementation.
    fn builds(&self) -> bool {
        self.general || self.claims.iter().any(|of| *of != Component::Testing)
    }

    /// Whether it may be work though it names no component.
    fn may_be_general(&self) -> bool {
        self.role == Role::Demand
            && !matches!(self.piece.form, Form::Done | Form::Heading)
            && self.claims.is_empty()
            && self.mentions.asks.is_none()
            && self.mentions.words > 0
            && !self.mentions.rules
            && self.mentions.excluded == Components::default()
    }

    fn is_work(&self) -> bool {
        matches!(self.role, Role::Demand | Role::Frame) && self.piece.form != Form::Done
    }
}

/// What headings mean for what stands below them.
struct SectionReadings {
    /// For each section its role and the one component it is about.
    of: Vec<(Role, Option<Component>)>,
    /// How many headings are of the first level.
    titles: usize,
}

impl SectionReadings {
    fn of(outline: &Outline<'_>) -> Self {
        let mut of: Vec<(Role, Option<Component>)> = Vec::with_capacity(outline.sections.len());
        for section in &outline.sections {
            let (role_above, component_above) = section
                .parent
                .map_or((Role::Demand, None), |parent| of[parent]);
            let mentions = Mentions::of(section.heading);
            let component = match mentions.claims.as_slice() {
                [one] => Some(*one),
                [] => component_above,
                _ => None,
            };
            let denied = mentions.excluded != Components::default() && mentions.claims.is_empty();
            let role = match mentions.role {
                Some(role) => role,
                None if denied => Role::Exclusion,
                None => role_above,
            };
            of.push((role, component));
        }
        let titles = outline.sections.iter().filter(|section| section.depth == 1);
        let titles = titles.count();
        Self { of, titles }
    }

    /// One heading of the first level is the title of all.
    fn is_chapter(&self, section: &Section<'_>) -> bool {
        match section.depth {
            1 => self.titles > 1,
            depth => (2..=BOLD_DEPTH).contains(&depth),
        }
    }

    fn reading<'a>(&self, piece: Piece<'a>, section: &Section<'a>) -> Reading<'a> {
        let mentions = Mentions::of(piece.text);
        let (role_of_section, component) = self.of[piece.section];
        let role = mentions.role.unwrap_or(role_of_section);
        let claims = match (role, mentions.asks) {
            (Role::Observation, _) | (_, Some(_)) => Vec::new(),
            _ if piece.form == Form::Heading => mentions.claims.clone(),
            _ => under_heading(&mentions, component, role),
        };
        Reading {
            piece,
            heading: section.heading,
            in_chapter: self.is_chapter(section),
            mentions,
            role,
            claims,
            general: false,
        }
    }
}

/// A heading decides what a piece below it is part of, unless the piece is about testing or
/// deployment alone. "Backend" stands over schema and authentication too.
fn under_heading(mentions: &Mentions, heading: Option<Component>, role: Role) -> Vec<Component> {
    let own = &mentions.claims;
    match heading {
        Some(heading) if own.is_empty() && mentions.words > 0 && role == Role::Demand => {
            vec![heading]
        }
        Some(_) if matches!(own.as_slice(), [Component::Testing | Component::Deployment]) => {
            own.clone()
        }
        Some(Component::Api) if !own.contains(&Component::Api) => own.clone(),
        Some(heading) if !own.is_empty() => vec![heading],
        _ => own.clone(),
    }
}

/// A heading is work of its own only for what no piece below it takes up.
fn leave_to_pieces(readings: &mut [Reading<'_>]) {
    let mut taken = Components::default();
    for reading in readings.iter() {
        if reading.piece.form != Form::Heading && reading.is_work() {
            for &component in &reading.claims {
                taken.insert(component);
            }
        }
    }
    for reading in readings {
        if reading.piece.form == Form::Heading {
            reading
                .claims
                .retain(|component| !taken.contains(*component));
        }
    }
}

/// Gives pieces that name no component to somebody, so that no work is left out.
///
/// An item of a list is work of its own. A sentence goes with what its paragraph is about. A
/// paragraph without any component is work when it follows other work and says that something is
/// to be made; before that it introduces the whole.
fn find_general_work(readings: &mut [Reading<'_>]) {
    let mut begun = false;
    let mut start = 0;
    while start < readings.len() {
        let paragraph = readings[start].piece.paragraph;
        let length = readings[start..]
            .iter()
            .take_while(|reading| reading.piece.paragraph == paragraph)
            .count();
        let of_paragraph = &mut readings[start..start + length];
        begun = give_paragraph(of_paragraph, begun);
        start += length;
    }
}

fn give_paragraph(readings: &mut [Reading<'_>], mut begun: bool) -> bool {
    if readings
        .iter()
        .any(|reading| reading.piece.form == Form::Heading)
    {
        return begun;
    }
    if readings.iter().any(|reading| !reading.claims.is_empty()) {
        // What comes before any component is about all of them.
        let mut claims: Vec<Component> = Component::ALL
            .into_iter()
            .filter(|of| !around(*of))
            .filter(|of| readings.iter().any(|reading| reading.claims.contains(of)))
            .collect();
        for reading in readings {
            if !reading.claims.is_empty() {
                claims.clone_from(&reading.claims);
            } else if reading.role == Role::Demand && reading.mentions.asks.is_none() {
                reading.claims.clone_from(&claims);
            }
        }
        return true;
    }
    for reading in readings {
        let item = matches!(reading.piece.form, Form::Item { .. });
        reading.general = reading.may_be_general()
            && (item || reading.in_chapter || begun && reading.mentions.makes);
        // What follows an analysis that was asked for is the work itself.
        begun |= reading.general || reading.mentions.asks.is_some();
    }
    begun
}

/// Testing or deployment, which always are of something.
fn around(component: Component) -> bool {
    matches!(component, Component::Testing | Component::Deployment)
}

/// "Speed up the import. Add tests." is not about tests alone. Whether anything was found.
fn find_what_is_tested(readings: &mut [Reading<'_>]) -> bool {
    let mut found = false;
    for reading in readings {
        reading.general |= reading.may_be_general() && !reading.mentions.states;
        found |= reading.general;
    }
    found
}

/// The parts of all components, at most [`IMPLEMENTATIONS_MAX`], in the text's order.
fn parts<'a>(readings: &[Reading<'a>]) -> Vec<Part<'a>> {
    let components = Component::ALL
        .into_iter()
        .filter(|of| *of != Component::Testing);
    let components: Vec<Option<Component>> = components.map(Some).chain([None]).collect();
    let mut split_max = SPLIT_MAX;
    loop {
        let mut parts: Vec<Part<'a>> = components
            .iter()
            .flat_map(|of| parts_of(readings, *of, split_max))
            .collect();
        if parts.len() <= IMPLEMENTATIONS_MAX || split_max == 1 {
            parts.sort_by_key(|part| part.at);
            return parts;
        }
        split_max -= 1;
    }
}

fn parts_of<'a>(
    readings: &[Reading<'a>],
    component: Option<Component>,
    split_max: usize,
) -> Vec<Part<'a>> {
    let belongs = |reading: &Reading<'a>| match component {
        Some(component) => reading.claims.contains(&component),
        None => reading.general,
    };
    let mine = readings
        .iter()
        .enumerate()
        .filter(|(_, reading)| reading.is_work() && belongs(reading));
    let mut groups: Vec<Part<'a>> = Vec::new();
    let mut has_feature = false;
    let mut last_place = None;
    for (at, reading) in mine {
        let alone = reading.claims.len() <= 1 && reading.role == Role::Demand;
        let is_item = matches!(reading.piece.form, Form::Item { .. });
        let same_place = last_place == Some((reading.piece.section, reading.piece.paragraph))
            || last_place.is_some_and(|(section, _)| section == reading.piece.section)
                && !reading.heading.is_empty();
        last_place = Some((reading.piece.section, reading.piece.paragraph));
        let feature = Component::can_be_split(component)
            && alone
            && reading.mentions.words >= WORDS_MIN
            && (is_item || component.is_none() && !same_place);
        match groups.last_mut() {
            Some(last) if !(feature && has_feature) => last.texts.push(reading.piece.text),
            _ => groups.push(Part {
                component,
                feature: None,
                more: 0,
                texts: vec![reading.piece.text],
                at,
            }),
        }
        if feature {
            has_feature = true;
            if let Some(last) = groups.last_mut() {
                let titled = !is_item && !reading.heading.is_empty();
                let title = if titled {
                    reading.heading
                } else {
                    reading.piece.text
                };
                last.feature.get_or_insert(title);
            }
        }
    }
    let mut merged = merged(groups, split_max);
    if let [only] = merged.as_mut_slice() {
        only.feature = only.feature.filter(|_| component.is_none());
    }
    merged
}

/// Neighbours put together, until at most `groups_max` of about the same number are left.
fn merged(groups: Vec<Part<'_>>, groups_max: usize) -> Vec<Part<'_>> {
    let count = groups.len();
    let kept = count.min(groups_max);
    let mut merged: Vec<Part<'_>> = Vec::with_capacity(kept);
    for (at, group) in groups.into_iter().enumerate() {
        // The group that this one falls in, when `count` are spread over `kept`.
        let slot = at * kept / count;
        match merged.get_mut(slot) {
            Some(same) => {
                same.texts.extend(group.texts);
                same.more += 1;
            }
            None => merged.push(group),
        }
    }
    merged
}
