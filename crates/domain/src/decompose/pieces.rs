//! A text as people write it, cut into the pieces that may be work of their own: items of lists,
//! sentences, steps, each under its heading. One pass over the lines, no nesting on the stack.

use super::words::is_fence;

/// Words of a line that ends in a colon and still is a heading.
const LABEL_WORDS_MAX: usize = 8;
/// Words of a line in bold that still is a heading.
const BOLD_HEADING_WORDS_MAX: usize = 10;
/// The depth of a heading in bold, and of one by its colon; those with `#` have 1 to 6.
pub(super) const BOLD_DEPTH: usize = 7;
const LABEL_DEPTH: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// An item of a list with all that is nested in it.
    Item { numbered: bool },
    /// An item that is ticked off.
    Done,
    /// A sentence, or a line that begins with a label.
    Sentence,
    /// A heading, or a line that leads in a list.
    Heading,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    /// Without the list's marker.
    pub text: &'a str,
    pub form: Form,
    /// Its place in [`Outline::sections`].
    pub section: usize,
    /// Sentences of one paragraph have the same number.
    pub paragraph: usize,
}

/// What stands under one heading. The first one is what stands before any.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section<'a> {
    pub heading: &'a str,
    /// The section whose heading is above this one's.
    pub parent: Option<usize>,
    /// 1 to 6 by its marks, more for bold lines and for those that end in a colon.
    pub depth: usize,
}

#[derive(Debug)]
pub(super) struct Outline<'a> {
    pub sections: Vec<Section<'a>>,
    pub pieces: Vec<Piece<'a>>,
}

impl<'a> Outline<'a> {
    pub fn of(text: &'a str) -> Self {
        let mut reader = Reader {
            text,
            outline: Self {
                sections: vec![Section {
                    heading: "",
                    parent: None,
                    depth: 0,
                }],
                pieces: Vec::new(),
            },
            block: None,
            section: 0,
            section_has_items: false,
            paragraph: 0,
            after_blank: true,
            fenced: false,
        };
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            reader.read(line.trim_end(), at);
            at += line.len();
        }
        reader.close();
        reader.outline
    }
}

/// Lines that belong together so far.
#[derive(Debug, Clone, Copy)]
struct Block {
    form: Form,
    start: usize,
    end: usize,
    indent: usize,
    lines: usize,
}

struct Reader<'a> {
    text: &'a str,
    outline: Outline<'a>,
    block: Option<Block>,
    section: usize,
    section_has_items: bool,
    paragraph: usize,
    after_blank: bool,
    fenced: bool,
}

impl<'a> Reader<'a> {
    fn read(&mut self, line: &'a str, at: usize) {
        let end = at + line.len();
        if is_fence(line) || self.fenced {
            self.fenced ^= is_fence(line);
            self.extend_or_open(at, end);
            self.after_blank = false;
            return;
        }
        let bare = line.trim_start();
        let start = end - bare.len();
        let indent = line.len() - bare.len();
        if bare.is_empty() {
            if matches!(
                self.block,
                Some(Block {
                    form: Form::Sentence,
                    ..
                })
            ) {
                self.close();
            }
            self.after_blank = true;
            return;
        }
        self.read_words(bare, start, indent, end);
        self.after_blank = false;
    }

    fn read_words(&mut self, bare: &'a str, start: usize, indent: usize, end: usize) {
        let item = self.block.filter(|block| block.form != Form::Sentence);
        if let Some((depth, heading)) = marked_heading(bare).filter(|_| indent < 4) {
            self.open_section(depth, heading);
        } else if is_rule(bare) {
            self.read_rule(bare);
        } else if let Some((form, marker)) = item_marker(bare).filter(|_| !has_steps(bare)) {
            if item.is_some_and(|item| indent > item.indent + 1) {
                self.extend(end);
            } else {
                self.close();
                self.section_has_items = true;
                self.open(form, start + marker, indent, end);
            }
        } else if item.is_some_and(|item| {
            indent > item.indent || !self.after_blank && bare.starts_with(char::is_lowercase)
        }) {
            self.extend(end);
        } else if let Some(heading) = label_heading(bare) {
            self.open_section(LABEL_DEPTH, heading);
        } else {
            self.read_sentence_line(bare, start, end);
        }
    }

    fn read_sentence_line(&mut self, bare: &str, start: usize, end: usize) {
        let in_paragraph = matches!(
            self.block,
            Some(Block {
                form: Form::Sentence,
                ..
            })
        );
        if in_paragraph && !begins_with_label(bare) {
            self.extend(end);
            return;
        }
        if !in_paragraph {
            self.close();
            self.leave_label();
            self.paragraph += 1;
        }
        self.close();
        self.open(Form::Sentence, start, 0, end);
    }

    /// Text after a blank line is no longer under a label whose list is over.
    fn leave_label(&mut self) {
        let section = self.outline.sections[self.section];
        if self.after_blank && self.section_has_items && section.depth == LABEL_DEPTH {
            self.section = section.parent.unwrap_or(0);
            self.section_has_items = false;
        }
    }

    /// A line of `=` or `-` makes a heading of the one line before it.
    fn read_rule(&mut self, bare: &str) {
        let before = self
            .block
            .filter(|block| block.form == Form::Sentence && block.lines == 1 && !self.after_blank);
        if let Some(block) = before {
            self.block = None;
            let depth = if bare.starts_with('=') { 1 } else { 2 };
            self.open_section(depth, self.text[block.start..block.end].trim());
        } else {
            self.close();
        }
    }

    fn open_section(&mut self, depth: usize, heading: &'a str) {
        self.close();
        let mut parent = self.section;
        while self.outline.sections[parent].depth >= depth {
            parent = self.outline.sections[parent].parent.unwrap_or(0);
        }
        self.outline.sections.push(Section {
            heading,
            parent: Some(parent),
            depth,
        });
        self.section = self.outline.sections.len() - 1;
        self.section_has_items = false;
        self.paragraph += 1;
        self.push(heading, Form::Heading);
        self.paragraph += 1;
    }

    fn open(&mut self, form: Form, start: usize, indent: usize, end: usize) {
        self.block = Some(Block {
            form,
            start,
            end,
            indent,
            lines: 1,
        });
    }

    fn extend(&mut self, end: usize) {
        if let Some(block) = &mut self.block {
            block.end = end;
            block.lines += 1;
        }
    }

    fn extend_or_open(&mut self, start: usize, end: usize) {
        if self.block.is_some() {
            self.extend(end);
        } else {
            self.open(Form::Sentence, start, 0, end);
        }
    }

    fn close(&mut self) {
        let Some(block) = self.block.take() else {
            return;
        };
        let text = &self.text[block.start..block.end];
        match block.form {
            Form::Sentence => {
                self.push_sentences(text);
                self.lead_in(text);
            }
            form => {
                self.paragraph += 1;
                self.push(text, form);
            }
        }
    }

    fn push_sentences(&mut self, text: &'a str) {
        let steps = inline_steps(text);
        let prose = steps.first().map_or(text, |first| &text[..first.0]);
        for sentence in sentences(prose) {
            self.push(sentence, Form::Sentence);
        }
        for (at, &(_, start)) in steps.iter().enumerate() {
            let end = steps.get(at + 1).map_or(text.len(), |next| next.0);
            self.paragraph += 1;
            self.push(&text[start..end], Form::Item { numbered: true });
        }
    }

    /// What ends in a colon stands over what comes next.
    fn lead_in(&mut self, text: &str) {
        let of_sentence = |piece: &&Piece<'_>| piece.form == Form::Sentence;
        if let Some(last) = self.outline.pieces.last().filter(of_sentence)
            && text.trim_end().ends_with([':', '：'])
        {
            let heading = last.text;
            self.outline.pieces.pop();
            self.open_section(LABEL_DEPTH, heading);
        }
    }

    fn push(&mut self, text: &'a str, form: Form) {
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        self.outline.pieces.push(Piece {
            text,
            form,
            section: self.section,
            paragraph: self.paragraph,
        });
    }
}

/// `## Heading`, or a line all in bold.
fn marked_heading(line: &str) -> Option<(usize, &str)> {
    let hashes = line.bytes().take_while(|byte| *byte == b'#').count();
    let rest = &line[hashes..];
    if (1..=6).contains(&hashes) && rest.starts_with([' ', '\t']) {
        return Some((hashes, rest.trim().trim_end_matches('#').trim()));
    }
    let bare = line.trim_end_matches(':');
    let bold = ["**", "__"].iter().find_map(|mark| {
        bare.strip_prefix(mark)?
            .strip_suffix(mark)
            .filter(|inner| !inner.contains(mark))
    })?;
    let short = fewer_words(bold, BOLD_HEADING_WORDS_MAX);
    short.then_some((BOLD_DEPTH, bold.trim().trim_end_matches(':')))
}

/// `Backend:` with nothing behind it.
fn label_heading(line: &str) -> Option<&str> {
    let label = line.strip_suffix([':', '：'])?;
    let label = label.trim_matches('*').trim();
    (!label.is_empty() && fewer_words(label, LABEL_WORDS_MAX) && !label.contains(". "))
        .then_some(label)
}

fn fewer_words(text: &str, words_max: usize) -> bool {
    text.split_whitespace().nth(words_max).is_none()
}

/// Whether a line is like `Frontend: React with Tailwind`.
fn begins_with_label(line: &str) -> bool {
    let line = line.trim_start_matches('*');
    let Some((label, rest)) = line.split_once(':') else {
        return false;
    };
    let label = label.trim_end_matches('*');
    label.starts_with(char::is_uppercase)
        && (rest.starts_with(' ') || rest.starts_with('*'))
        && fewer_words(label, 3)
}

fn is_rule(line: &str) -> bool {
    line.len() >= 3
        && (line.bytes().all(|byte| byte == b'=') || line.bytes().all(|byte| byte == b'-'))
}

/// The form of an item and the length of its marker, box included.
fn item_marker(line: &str) -> Option<(Form, usize)> {
    let (numbered, marker) = bullet(line)
        .map(|length| (false, length))
        .or_else(|| number(line).map(|length| (true, length)))?;
    let rest = &line[marker..];
    let body = rest.trim_start();
    let marker = marker + rest.len() - body.len();
    let form = Form::Item { numbered };
    match body.get(..3) {
        Some("[ ]") => Some((form, marker + 3)),
        Some("[x]" | "[X]") => Some((Form::Done, marker + 3)),
        _ => Some((form, marker)),
    }
}

fn bullet(line: &str) -> Option<usize> {
    let first = line.chars().next()?;
    let rest = &line[first.len_utf8()..];
    let is_bullet = matches!(
        first,
        '-' | '*' | '+' | '•' | '–' | '·' | '▪' | '◦' | '‣' | '●' | '○'
    );
    // Many people leave out the space after a hyphen.
    let close = first == '-' && rest.starts_with(char::is_alphabetic) || first == '•';
    (is_bullet && (close || rest.starts_with([' ', '\t']))).then_some(first.len_utf8())
}

/// `1.`, `1)`, `(1)`, `a)`, `Step 1:`; the length of it.
fn number(line: &str) -> Option<usize> {
    let (word, counted) = match line.split_once([' ', '\t']) {
        Some((word, rest)) if is_step(word) => (word.len() + 1, rest),
        _ => (0, line),
    };
    let open = usize::from(counted.starts_with('('));
    let inner = &counted[open..];
    let digits = inner.bytes().take_while(u8::is_ascii_digit).count();
    let letter = inner.bytes().take_while(u8::is_ascii_alphabetic).count() == 1;
    let length = if letter && word == 0 { 1 } else { digits };
    let after = inner[length..].chars().next()?;
    let closes = match after {
        ')' => true,
        '.' | ':' => open == 0 && !letter && (after == '.' || word > 0),
        _ => false,
    };
    let end = word + open + length + 1;
    let spaced = line.get(end..)?.starts_with([' ', '\t']);
    ((1..=3).contains(&length) && closes && spaced).then_some(end)
}

fn is_step(word: &str) -> bool {
    const STEPS: [&str; 7] = ["step", "phase", "schritt", "paso", "fase", "etape", "étape"];
    word.len() <= 8 && STEPS.contains(&word.to_lowercase().as_str())
}

fn has_steps(line: &str) -> bool {
    !inline_steps(line).is_empty()
}

/// `1. this 2. that` on one line: where each begins with its number and without it. At least two,
/// counted from one.
fn inline_steps(text: &str) -> Vec<(usize, usize)> {
    let mut steps: Vec<(usize, usize)> = Vec::new();
    let mut starts_word = true;
    for (at, c) in text.char_indices() {
        if starts_word && (c.is_ascii_digit() || c == '(') {
            let rest = &text[at..];
            let open = usize::from(c == '(');
            let digits = rest[open..]
                .bytes()
                .take(3)
                .take_while(u8::is_ascii_digit)
                .count();
            let expected = steps.len() + 1;
            let is_next = rest[open..open + digits].parse() == Ok(expected);
            let mut after = rest[open + digits..].chars();
            let closed = after
                .next()
                .is_some_and(|c| c == ')' || c == '.' && open == 0);
            if is_next && closed && after.next().is_some_and(char::is_whitespace) {
                steps.push((at, at + open + digits + 1));
            }
        }
        starts_word = c.is_whitespace();
    }
    if steps.len() < 2 {
        steps.clear();
    }
    steps
}

/// Ends of sentences are `.`, `!` or `?` before a space and something that begins like a sentence.
fn sentences(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut ended = None;
    let mut letters = 0_usize;
    for (at, c) in text.char_indices() {
        if let Some(end) = ended {
            if c.is_whitespace() {
                continue;
            }
            ended = None;
            if !c.is_lowercase() {
                found.push(&text[start..end]);
                start = at;
            }
        }
        let end = at + c.len_utf8();
        let spaced = text[end..].starts_with(char::is_whitespace);
        // A single letter before the point is an abbreviation: `z. B.`, `e. g.`.
        let ends = match c {
            '.' => spaced && letters > 1,
            '!' | '?' => spaced,
            '。' | '！' | '？' => true,
            _ => false,
        };
        if ends {
            ended = Some(end);
        }
        letters = if c.is_whitespace() { 0 } else { letters + 1 };
    }
    found.push(&text[start..]);
    found
}
