//! An INI file as Python's `RawConfigParser` reads it, which is what Odoo uses: strict, nothing interpolated,
//! comments on lines of their own only, and indented lines that go on with the option above.

use std::collections::{BTreeMap, HashMap};

/// The section whose options all sections have.
const DEFAULTS: &str = "DEFAULT";

/// One option of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// In small letters.
    pub(super) name: String,
    /// Several lines where it goes on.
    pub(super) value: String,
    /// Where it begins, counted from 1.
    pub(super) line: usize,
}

/// Why Python refuses a text. None of them shows what stands there: it may be a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("line {0} comes before the first section")]
    NoSection(usize),
    #[error("line {line} begins the section [{name}] again, which line {first} began")]
    DuplicateSection { name: String, line: usize, first: usize },
    #[error("line {line} sets {name} again, which line {first} set")]
    DuplicateOption { name: String, line: usize, first: usize },
    #[error("line {0} is neither a section, an option nor a comment: it has neither = nor :")]
    Neither(usize),
}

/// The sections of a text.
#[derive(Debug, Default)]
pub(super) struct Ini {
    sections: BTreeMap<String, Section>,
}

#[derive(Debug, Default)]
struct Section {
    line: usize,
    entries: Vec<Entry>,
    /// Where each option was set.
    set: HashMap<String, usize>,
}

impl Ini {
    /// Reads a text.
    ///
    /// # Errors
    /// Where Python raises an exception.
    pub(super) fn read(text: &str) -> Result<Self, Refused> {
        let mut ini = Self::default();
        let mut section: Option<&mut Section> = None;
        // Whether an indented line goes on with the last option.
        let mut open = false;
        let (mut depth, mut neither) = (0, None);
        for (index, line) in lines(text).enumerate() {
            let (number, bare) = (index + 1, line.trim());
            let last = section.as_mut().filter(|_| open).and_then(|section| section.entries.last_mut());
            if bare.starts_with(['#', ';']) {
                continue;
            }
            if bare.is_empty() {
                if let Some(entry) = last {
                    entry.value.push('\n');
                }
                continue;
            }
            let indent = line.chars().take_while(|c| c.is_whitespace()).count();
            if let Some(entry) = last.filter(|_| indent > depth) {
                entry.value.push('\n');
                entry.value.push_str(bare);
                continue;
            }
            depth = indent;
            if let Some(name) = header(bare) {
                open = false;
                section = Some(ini.begin(name, number)?);
            } else {
                let Some(section) = &mut section else { return Err(Refused::NoSection(number)) };
                match bare.split_once(['=', ':']).filter(|(name, _)| !name.trim().is_empty()) {
                    Some((name, value)) => {
                        section.add(name.trim_end().to_lowercase(), value.trim(), number)?;
                        open = true;
                    }
                    // Python reads on, for an error that it finds more important.
                    None => neither = neither.or(Some(number)),
                }
            }
        }
        for entry in ini.sections.values_mut().flat_map(|section| &mut section.entries) {
            entry.value.truncate(entry.value.trim_end().len());
        }
        match neither {
            Some(line) => Err(Refused::Neither(line)),
            None => Ok(ini),
        }
    }

    fn begin(&mut self, name: &str, line: usize) -> Result<&mut Section, Refused> {
        if let Some(begun) = self.sections.get(name).filter(|_| name != DEFAULTS) {
            return Err(Refused::DuplicateSection { name: name.to_owned(), line, first: begun.line });
        }
        Ok(self.sections.entry(name.to_owned()).or_insert_with(|| Section { line, ..Section::default() }))
    }

    /// A section's options, after those that all have; none if it is not there.
    pub(super) fn section(&self, name: &str) -> Option<Vec<&Entry>> {
        let own = self.sections.get(name)?;
        let defaults = self.sections.get(DEFAULTS).filter(|_| name != DEFAULTS);
        let defaults = defaults.into_iter().flat_map(|section| &section.entries);
        let inherited = defaults.filter(|entry| !own.set.contains_key(&entry.name));
        Some(inherited.chain(&own.entries).collect())
    }
}

impl Section {
    fn add(&mut self, name: String, value: &str, line: usize) -> Result<(), Refused> {
        if let Some(&first) = self.set.get(&name) {
            return Err(Refused::DuplicateOption { name, line, first });
        }
        self.set.insert(name.clone(), line);
        self.entries.push(Entry { name, value: value.to_owned(), line });
        Ok(())
    }
}

/// What stands in a line's brackets, whatever follows them.
fn header(line: &str) -> Option<&str> {
    line.strip_prefix('[')?.rsplit_once(']').map(|(name, _)| name).filter(|name| !name.is_empty())
}

/// The lines of a text from any system.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Vec<(String, String)> {
        let ini = Ini::read(text).unwrap();
        let entries = ini.section("options").unwrap();
        entries.into_iter().map(|entry| (entry.name.clone(), entry.value.clone())).collect()
    }

    #[test]
    fn reads_what_python_reads() {
        for (text, expected) in [
            ("[options]\nA = 1\nb: 2", vec![("a", "1"), ("b", "2")]),
            ("[options] ; all\nurl = http://a:1/?b=c", vec![("url", "http://a:1/?b=c")]),
            ("[options]\r\na = 1\r\n\r\nb=2\r\n", vec![("a", "1"), ("b", "2")]),
            ("[options]\ra = 1\rb = 2", vec![("a", "1"), ("b", "2")]),
            ("; c\n\n[options]\n# x = 1\n  ; y = 2\na = 1 ; one", vec![("a", "1 ; one")]),
            ("[options]\na = /x,\n    /y,\n\n  # no\n    /z\nb =", vec![("a", "/x,\n/y,\n\n/z"), ("b", "")]),
            ("[options]\n  a = 1\n  b = 2\n   c = 3", vec![("a", "1"), ("b", "2\nc = 3")]),
            ("[options]\na = %(b)s ${C}", vec![("a", "%(b)s ${C}")]),
            ("[DEFAULT]\na = 1\nb = 2\n[options]\nb = 3\n[x]\nb = 4", vec![("a", "1"), ("b", "3")]),
            ("[options]", vec![]),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
            assert_eq!(options(text), expected, "{text:?}");
        }
    }

    #[test]
    fn refuses_what_python_refuses() {
        for (text, expected) in [
            ("a = 1\n[options]", "line 1 comes before the first section"),
            ("[options]\na = 1\nA: 2", "line 3 sets a again, which line 2 set"),
            ("[options]\n[x]\n[options]", "line 3 begins the section [options] again, which line 1 began"),
            ("[options]\na = 1\nhunter2\nb = 2", "line 3 is neither"),
            ("[options]\n= 1", "line 2 is neither"),
            ("[]\na = 1", "line 1 comes before"),
            ("[options]\n{% if a %}\na = 1\n{% endif %}", "line 2 is neither"),
        ] {
            let refused = Ini::read(text).unwrap_err().to_string();
            assert!(refused.starts_with(expected) && !refused.contains("hunter2"), "{text:?}: {refused}");
        }
        assert!(Ini::read("").unwrap().section("options").is_none());
        assert!(Ini::read("[Options]\na = 1\n[DEFAULT]\nb = 1").unwrap().section("options").is_none());
    }
}
