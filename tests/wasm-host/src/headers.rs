//! Headers as Envoy keeps them: names in lower case, values any bytes, in order.

use std::{fmt, ops::Range};

/// A header map. Names are bytes too: nothing in the ABI says that they are text.
#[derive(Clone, Default)]
pub struct Headers {
    /// All names and values in one piece: the benchmark is not to measure this host's allocations.
    bytes: Vec<u8>,
    entries: Vec<(Range<usize>, Range<usize>)>,
}

impl Headers {
    /// The headers of a list.
    pub fn new<N: AsRef<[u8]>, V: AsRef<[u8]>>(list: &[(N, V)]) -> Self {
        let mut headers = Self::default();
        for (name, value) in list {
            headers.add(name.as_ref(), value.as_ref());
        }
        headers
    }

    /// The first value of a header.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        let name = name.as_ref();
        self.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// All values of a header, joined by commas.
    pub(crate) fn get_joined(&self, name: &[u8]) -> Option<Vec<u8>> {
        let values: Vec<_> =
            self.iter().filter(|(other, _)| *other == name).map(|(_, value)| value).collect();
        (!values.is_empty()).then(|| values.join(&b','))
    }

    /// All headers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|(name, value)| (&self.bytes[name.clone()], &self.bytes[value.clone()]))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn add(&mut self, name: &[u8], value: &[u8]) {
        let name = self.store(name);
        self.bytes[name.clone()].make_ascii_lowercase();
        let value = self.store(value);
        self.entries.push((name, value));
    }

    /// Puts one header in the place of all of its name.
    pub(crate) fn replace(&mut self, name: &[u8], value: &[u8]) {
        let Some(place) = self.entries.iter().position(|(other, _)| self.bytes[other.clone()] == *name)
        else {
            return self.add(name, value);
        };
        self.entries[place].1 = self.store(value);
        self.retain_from(place + 1, name);
    }

    pub(crate) fn remove(&mut self, name: &[u8]) {
        self.retain_from(0, name);
    }

    /// Removes the headers of a name from a place on.
    fn retain_from(&mut self, first: usize, name: &[u8]) {
        let Self { bytes, entries } = self;
        let mut place = 0;
        entries.retain(|(other, _)| {
            place += 1;
            place <= first || bytes[other.clone()] != *name
        });
    }

    fn store(&mut self, text: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(text);
        start..self.bytes.len()
    }

    /// The ABI's form of all headers: how many, the lengths, then names and values, each with a zero.
    pub(crate) fn write_pairs(&self, to: &mut Vec<u8>) {
        to.clear();
        if self.is_empty() {
            return;
        }
        to.extend_from_slice(&(self.len() as u32).to_le_bytes());
        for (name, value) in self.iter() {
            to.extend_from_slice(&(name.len() as u32).to_le_bytes());
            to.extend_from_slice(&(value.len() as u32).to_le_bytes());
        }
        for part in self.iter().flat_map(|(name, value)| [name, value]) {
            to.extend_from_slice(part);
            to.push(0);
        }
    }

    /// Reads what [`Self::write_pairs`] writes.
    pub(crate) fn read_pairs(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
        let mut headers = Self::default();
        let Some(count) = number(0) else { return Some(headers) };
        let mut at = 4 + count * 8;
        for place in 0..count {
            let (name_len, value_len) = (number(4 + place * 8)?, number(8 + place * 8)?);
            let name = bytes.get(at..at + name_len)?;
            let value = bytes.get(at + name_len + 1..at + name_len + 1 + value_len)?;
            headers.add(name, value);
            at += name_len + value_len + 2;
        }
        Some(headers)
    }
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |(name, value): (&[u8], &[u8])| {
            (name.escape_ascii().to_string(), value.escape_ascii().to_string())
        };
        f.debug_map().entries(self.iter().map(text)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_back() {
        for list in [&[][..] as &[(&str, &str)], &[("a", "")], &[("a", "1"), ("B", "22"), ("a", "3")]] {
            let headers = Headers::new(list);
            let mut bytes = Vec::new();
            headers.write_pairs(&mut bytes);
            assert_eq!(Headers::read_pairs(&bytes), Some(headers));
        }
        assert_eq!(Headers::read_pairs(&[9, 0, 0, 0]), None);
    }

    #[test]
    fn replacing_leaves_one() {
        let mut headers = Headers::new(&[("a", "1"), ("b", "2"), ("A", "3")]);
        headers.replace(b"a", b"4");
        headers.replace(b"c", b"5");
        assert_eq!(headers, Headers::new(&[("a", "4"), ("b", "2"), ("c", "5")]));
        headers.remove(b"a");
        assert_eq!(headers.get("a"), None);
    }
}
