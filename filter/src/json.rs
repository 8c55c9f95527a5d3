//! Reads the plugin's JSON configuration (RFC 8259).
//!
//! Why not a library: serde_json would double the module, and a filter must stay small; and none of the
//! small ones says where a text is wrong or refuses a field that is given twice. `tests/json.rs`
//! holds this reader to serde_json's answers.

use core::str::FromStr;

/// Lists and objects within each other. The configuration needs three.
const DEPTH: usize = 16;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number without sign, fraction and exponent that fits 64 bits.
    Whole(u64),
    /// Any other number, as it is written.
    Number(String),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Json>),
    /// An object: its fields as written, each name once.
    Object(Vec<(String, Json)>),
}

/// Where a text stops being JSON, and what was expected there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct JsonError {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What was expected, or is wrong.
    pub problem: &'static str,
}

impl FromStr for Json {
    type Err = JsonError;

    fn from_str(text: &str) -> Result<Self, JsonError> {
        let mut reader = Reader { text, rest: text };
        let value = reader.value(DEPTH).and_then(|value| {
            reader.skip_space();
            if reader.rest.is_empty() { Ok(value) } else { Err("expected the end of the text") }
        });
        value.map_err(|problem| reader.error(problem))
    }
}

type Read<T> = Result<T, &'static str>;

struct Reader<'a> {
    text: &'a str,
    rest: &'a str,
}

impl Reader<'_> {
    fn error(&self, problem: &'static str) -> JsonError {
        let read = self.text.strip_suffix(self.rest).unwrap_or(self.text);
        let last_line = read.rsplit('\n').next().unwrap_or(read);
        let line = read.matches('\n').count() + 1;
        JsonError { line, column: last_line.chars().count() + 1, problem }
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    /// Goes past `token`, if it is next.
    fn next_is(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn value(&mut self, depth: usize) -> Read<Json> {
        self.skip_space();
        let depth_left = depth.checked_sub(1).ok_or("too many lists and objects within each other")?;
        match self.rest.as_bytes().first() {
            Some(b'{') => self.object(depth_left),
            Some(b'[') => self.list(depth_left),
            Some(b'"') => self.text().map(Json::Text),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ if self.next_is("null") => Ok(Json::Null),
            _ if self.next_is("true") => Ok(Json::Bool(true)),
            _ if self.next_is("false") => Ok(Json::Bool(false)),
            _ => Err("expected a value"),
        }
    }

    /// Whether another item follows, after the opening bracket or an item.
    fn another(&mut self, close: &str, is_first: bool, problem: &'static str) -> Read<bool> {
        self.skip_space();
        if self.next_is(close) {
            return Ok(false);
        }
        if is_first || self.next_is(",") { Ok(true) } else { Err(problem) }
    }

    fn list(&mut self, depth: usize) -> Read<Json> {
        self.next_is("[");
        let mut list = Vec::new();
        while self.another("]", list.is_empty(), "expected , or ]")? {
            list.push(self.value(depth)?);
        }
        Ok(Json::List(list))
    }

    fn object(&mut self, depth: usize) -> Read<Json> {
        self.next_is("{");
        let mut fields: Vec<(String, Json)> = Vec::new();
        while self.another("}", fields.is_empty(), "expected , or }")? {
            self.skip_space();
            let before = self.rest;
            let name = self.text()?;
            if fields.iter().any(|(other, _)| *other == name) {
                self.rest = before;
                return Err("this field is already given above");
            }
            self.skip_space();
            if !self.next_is(":") {
                return Err("expected :");
            }
            let value = self.value(depth)?;
            fields.push((name, value));
        }
        Ok(Json::Object(fields))
    }

    fn number(&mut self) -> Read<Json> {
        let end = self.rest.find(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E'));
        let (text, rest) = self.rest.split_at_checked(end.unwrap_or(self.rest.len())).unwrap_or_default();
        if !is_number(text) {
            return Err("expected a number");
        }
        self.rest = rest;
        // A leading minus, a fraction or an exponent do not parse as a whole number.
        Ok(text.parse().map_or_else(|_| Json::Number(text.to_owned()), Json::Whole))
    }

    fn text(&mut self) -> Read<String> {
        if !self.next_is("\"") {
            return Err("expected a text in double quotes");
        }
        let mut text = String::new();
        loop {
            let end = self.rest.find(|c: char| matches!(c, '"' | '\\' | '\0'..='\x1f'));
            let (plain, rest) = self.rest.split_at_checked(end.ok_or("expected \"")?).unwrap_or_default();
            text.push_str(plain);
            self.rest = rest;
            if self.next_is("\"") {
                return Ok(text);
            }
            if !self.next_is("\\") {
                return Err("control characters must be escaped in a text");
            }
            text.push(self.escape()?);
        }
    }

    /// The character of an escape, after its backslash.
    fn escape(&mut self) -> Read<char> {
        const SHORT: [(&str, char); 8] = [
            ("\"", '"'),
            ("\\", '\\'),
            ("/", '/'),
            ("b", '\x08'),
            ("f", '\x0c'),
            ("n", '\n'),
            ("r", '\r'),
            ("t", '\t'),
        ];
        if let Some((_, short)) = SHORT.iter().find(|(letter, _)| self.rest.starts_with(letter)) {
            self.rest = self.rest.get(1..).unwrap_or_default();
            return Ok(*short);
        }
        let first = self.unicode_escape("u")?;
        let code = match first {
            0xd800..=0xdbff => match self.unicode_escape("\\u")? {
                second @ 0xdc00..=0xdfff => 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00),
                _ => return Err("expected the second half of a surrogate pair"),
            },
            other => other,
        };
        char::from_u32(code).ok_or("expected an escape of a character")
    }

    fn unicode_escape(&mut self, start: &str) -> Read<u32> {
        const PROBLEM: &str = "expected an escape such as \\n or \\u00e9";
        if !self.next_is(start) {
            return Err(PROBLEM);
        }
        let (digits, rest) = self.rest.split_at_checked(4).ok_or(PROBLEM)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(PROBLEM);
        }
        self.rest = rest;
        u32::from_str_radix(digits, 16).map_err(|_| PROBLEM)
    }
}

/// Whether a text of digits, signs, points and exponents is a JSON number.
fn is_number(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let no_leading_zero = whole == "0" || !whole.starts_with('0');
    digits(whole) && no_leading_zero && digits(fraction) && digits(exponent)
}
