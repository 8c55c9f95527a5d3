//! Headers as Envoy keeps them: names in lower case, values any bytes, in order.

/// A header map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, Vec<u8>)>);

impl Headers {
    /// The headers of a list.
    pub fn new<V: AsRef<[u8]>>(list: &[(&str, V)]) -> Self {
        Self(list.iter().map(|(name, value)| (name.to_lowercase(), value.as_ref().to_vec())).collect())
    }

    /// The first value of a header.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.get_bytes(name.as_bytes())
    }

    /// All headers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same names as they are, so that the module's reading of foreign names can be tried.
    pub(crate) fn get_bytes(&self, name: &[u8]) -> Option<&[u8]> {
        let (_, value) = self.0.iter().find(|(other, _)| other.as_bytes() == name)?;
        Some(value)
    }

    /// Puts one header in the place of all of its name.
    pub(crate) fn replace(&mut self, name: &[u8], value: &[u8]) {
        match self.0.iter_mut().find(|(other, _)| other.as_bytes() == name) {
            Some((_, old)) => {
                old.clear();
                old.extend_from_slice(value);
                let mut is_first = true;
                self.0.retain(|(other, _)| other.as_bytes() != name || std::mem::take(&mut is_first));
            }
            None => self.0.push((String::from_utf8_lossy(name).into_owned(), value.to_vec())),
        }
    }

    pub(crate) fn remove(&mut self, name: &[u8]) {
        self.0.retain(|(other, _)| other.as_bytes() != name);
    }

    /// The ABI's form of all headers: how many, the lengths, then names and values, each with a zero.
    pub(crate) fn write_pairs(&self, to: &mut Vec<u8>) {
        to.clear();
        if self.0.is_empty() {
            return;
        }
        to.extend_from_slice(&(self.0.len() as u32).to_le_bytes());
        for (name, value) in &self.0 {
            to.extend_from_slice(&(name.len() as u32).to_le_bytes());
            to.extend_from_slice(&(value.len() as u32).to_le_bytes());
        }
        for (name, value) in &self.0 {
            to.extend_from_slice(name.as_bytes());
            to.push(0);
            to.extend_from_slice(value);
            to.push(0);
        }
    }

    /// Reads what [`Self::write_pairs`] writes.
    pub(crate) fn read_pairs(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
        let Some(count) = number(0) else { return Some(Self::default()) };
        let mut headers = Vec::new();
        let mut at = 4 + count * 8;
        for place in 0..count {
            let (name_len, value_len) = (number(4 + place * 8)?, number(8 + place * 8)?);
            let name = bytes.get(at..at + name_len)?;
            let value = bytes.get(at + name_len + 1..at + name_len + 1 + value_len)?;
            headers.push((String::from_utf8_lossy(name).to_lowercase(), value.to_vec()));
            at += name_len + value_len + 2;
        }
        Some(Self(headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_back() {
        for list in [&[][..], &[("a", "")], &[("a", "1"), ("B", "22"), ("a", "3")]] {
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
