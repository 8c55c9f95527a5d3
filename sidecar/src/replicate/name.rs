//! Names of replicated files. Those from the store are not trusted.

/// How many folders a file may be in.
pub(super) const DEEPEST: usize = 4;

/// A file's path in its directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name(String);

impl Name {
    /// None if it is a path that might lead elsewhere, is too deep, or is one of a temporary file.
    pub(super) fn new(path: &str) -> Option<Self> {
        let good = |part: &str| {
            !["", ".", ".."].contains(&part)
                && part.len() <= 255
                && !part.contains('\0')
                && !is_temporary(part)
        };
        let fits = path.split('/').count() <= DEEPEST + 1;
        (fits && path.split('/').all(good)).then(|| Self(path.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The folders that it is in, and its name there.
    pub(super) fn parts(&self) -> (impl Iterator<Item = &str>, &str) {
        let (folders, last) = self.0.rsplit_once('/').unwrap_or(("", &self.0));
        (folders.split('/').filter(|part| !part.is_empty()), last)
    }
}

/// Whether a file or folder is somebody's temporary one.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with("mooring-") || name.ends_with(".tmp")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_or_are_temporary_are_none() {
        for good in ["a", "a/b", "1/2/3/4/file", "ä ö", ".hidden", "a..b", "tmp", "a.tmp.b"] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        let long = "x".repeat(256);
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../a",
            "a/../../b",
            "a/./b",
            "a//b",
            "a/",
            "a\0b",
            "1/2/3/4/5/file",
        ]
        .into_iter()
        .chain(["a.tmp", "mooring-1", "mooring-1/a", "a.tmp/b", long.as_str()])
        {
            assert_eq!(Name::new(bad), None, "{bad:?}");
        }
    }
}
