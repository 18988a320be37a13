//! A text as words that can be compared: lower case, without accents, with what stands between.

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// What separates a word from the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Gap {
    /// Spaces, hyphens, slashes, apostrophes.
    Space,
    /// A comma, `&` or `+`: a list goes on.
    Comma,
    /// The end of a clause.
    Break,
}

/// How a word was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Lower,
    Capital,
    Upper,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    pub gap: Gap,
    pub case: Case,
    /// Where it begins in the folded text, with the space before it.
    at: usize,
}

/// The words of a text. Code between fences, addresses, mail addresses and paths of files are left
/// out: they say where something is, not what is wanted.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// Each word between two spaces of its own, so that a phrase matches whole words only and two
    /// neighbours never share a space.
    folded: String,
    words: Vec<Word>,
}

impl Words {
    pub fn of(text: &str) -> Self {
        let mut this = Self::default();
        let mut fenced = false;
        let mut gap = Gap::Break;
        for line in text.lines() {
            if is_fence(line) {
                fenced = !fenced;
                gap = Gap::Break;
            } else if !fenced {
                for chunk in line.split_whitespace() {
                    gap = this.push_chunk(chunk, gap);
                }
            }
        }
        this
    }

    pub fn folded(&self) -> &str {
        &self.folded
    }

    pub fn len(&self) -> usize {
        self.words.len()
    }

    pub fn word(&self, index: usize) -> Option<&Word> {
        self.words.get(index)
    }

    /// The folded word without its spaces.
    pub fn folded_word(&self, index: usize) -> &str {
        let Some(word) = self.words.get(index) else {
            return "";
        };
        let end = self.words.get(index + 1);
        self.folded[word.at..end.map_or(self.folded.len(), |next| next.at)].trim()
    }

    /// The word that covers a byte of the folded text.
    pub fn index_at(&self, byte: usize) -> usize {
        self.words
            .partition_point(|word| word.at <= byte)
            .saturating_sub(1)
    }

    /// The widest gap before the words `from..=to`.
    pub fn gap_within(&self, from: usize, to: usize) -> Gap {
        let within = self.words.get(from..=to).unwrap_or_default();
        within
            .iter()
            .map(|word| word.gap)
            .max()
            .unwrap_or(Gap::Space)
    }

    /// Takes the words out of what stands between two spaces; the answer is the gap after it.
    fn push_chunk(&mut self, chunk: &str, before: Gap) -> Gap {
        let mut gap = before;
        if !is_place(chunk) {
            let mut rest = chunk;
            while let Some(start) = rest.find(is_of_word) {
                gap = gap.max(gap_of(&rest[..start]));
                let tail = &rest[start..];
                let length = tail.find(|c| !is_of_word(c)).unwrap_or(tail.len());
                self.push_word(&tail[..length], gap);
                gap = Gap::Space;
                rest = &tail[length..];
            }
            return gap.max(gap_at_end(rest));
        }
        gap.max(gap_at_end(chunk.trim_start_matches(is_of_word)))
    }

    fn push_word(&mut self, word: &str, gap: Gap) {
        let mut letters = word.chars().filter(|c| c.is_alphabetic());
        let case = match letters.next() {
            Some(first) if first.is_uppercase() => {
                let mut others = letters.peekable();
                let upper = others.peek().is_some() && others.all(char::is_uppercase);
                if upper { Case::Upper } else { Case::Capital }
            }
            _ => Case::Lower,
        };
        let at = self.folded.len();
        self.folded.push(' ');
        fold_into(word, &mut self.folded);
        self.folded.push(' ');
        self.words.push(Word { gap, case, at });
    }
}

/// Lower case without accents; `ß` as `ss`.
pub(super) fn fold_into(word: &str, folded: &mut String) {
    let lower = word.chars().flat_map(char::to_lowercase);
    for c in lower.nfd().filter(|c| !is_combining_mark(*c)) {
        match c {
            'ß' => folded.push_str("ss"),
            c => folded.push(c),
        }
    }
}

/// Whether a line opens or closes a block of code.
pub(super) fn is_fence(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("```") || line.starts_with("~~~")
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || is_combining_mark(c)
}

fn gap_of(between: &str) -> Gap {
    let wide = |c| matches!(c, ';' | '(' | ')' | '!' | '?' | '—' | '–' | '|' | '…');
    if between.contains(wide) || between == "-" || between == "*" {
        Gap::Break
    } else if between.contains([',', '&', '+', '、', '，']) {
        Gap::Comma
    } else {
        Gap::Space
    }
}

/// Before a space also `.` and `:` end a clause; within `node.js` they do not.
fn gap_at_end(rest: &str) -> Gap {
    if rest.contains(['.', ':', '。', '：']) {
        return Gap::Break;
    }
    gap_of(rest)
}

/// An address, a mail address or the path of a file.
fn is_place(chunk: &str) -> bool {
    let bare = chunk.trim_matches(|c: char| !c.is_alphanumeric() && c != '/' && c != '.');
    let bare = bare.trim_end_matches('.');
    if chunk.contains("://") || bare.starts_with("www.") {
        return true;
    }
    if chunk.contains('@')
        && bare
            .split_once('@')
            .is_some_and(|(_, host)| host.contains('.'))
    {
        return true;
    }
    let Some((folder, file)) = bare.rsplit_once('/') else {
        return false;
    };
    let Some((stem, extension)) = file.rsplit_once('.') else {
        return false;
    };
    // `express/node.js` are two names of libraries.
    let library = extension == "js" && matches!(stem, "node" | "next" | "vue" | "nuxt" | "nest");
    let short = (1..=5).contains(&extension.len());
    short && !library && !folder.contains(' ') && extension.chars().all(char::is_alphanumeric)
}
