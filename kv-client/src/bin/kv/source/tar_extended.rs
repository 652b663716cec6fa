//! What a tar's extended headers say of the member behind them: PAX records, and GNU's long names.

/// How the keywords begin that only sparse members have.
const PAX_SPARSE: &[u8] = b"GNU.sparse.";

/// What was said, where anything was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extended {
    /// The member's name.
    pub(super) name: Option<Vec<u8>>,
    /// The name that it links to.
    pub(super) link: Option<Vec<u8>>,
    /// Its length, bytes.
    pub(super) size: Option<u64>,
    /// Whether its bytes do not lie in the tar as they are.
    pub(super) is_sparse: bool,
}

impl Extended {
    /// What GNU's header for a long name says.
    pub(super) fn of_long_name(body: &[u8]) -> Result<Self, &'static str> {
        let name = Some(until_zero(body)?);
        Ok(Self {
            name,
            ..Self::default()
        })
    }

    /// What GNU's header for a long link says.
    pub(super) fn of_long_link(body: &[u8]) -> Result<Self, &'static str> {
        let link = Some(until_zero(body)?);
        Ok(Self {
            link,
            ..Self::default()
        })
    }

    /// What PAX records say, each `LENGTH KEYWORD=VALUE` and a newline, where LENGTH counts all of it: a value may hold
    /// newlines. Of two with one keyword the last counts (POSIX, pax, "Extended Header Keyword Precedence").
    pub(super) fn of_records(mut body: &[u8]) -> Result<Self, &'static str> {
        let mut said = Self::default();
        while !body.is_empty() {
            let (keyword, value, rest) = record(body)?;
            match keyword {
                b"path" => said.name = Some(path(value)?),
                b"linkpath" => said.link = Some(path(value)?),
                b"size" => said.size = Some(number(value).ok_or("the size in a PAX record is no number")?),
                _ if keyword.starts_with(PAX_SPARSE) => said.is_sparse = true,
                _ => {}
            }
            body = rest;
        }
        Ok(said)
    }

    /// What two headers in front of one member say together.
    pub(super) fn and(self, other: Self) -> Result<Self, &'static str> {
        let twice = self.name.is_some() && other.name.is_some()
            || self.link.is_some() && other.link.is_some()
            || self.size.is_some() && other.size.is_some();
        if twice {
            return Err("two extended headers say the same of one member");
        }
        Ok(self.over(other))
    }

    /// What this says, and where it says nothing, `other`.
    pub(super) fn over(self, other: Self) -> Self {
        Self {
            name: self.name.or(other.name),
            link: self.link.or(other.link),
            size: self.size.or(other.size),
            is_sparse: self.is_sparse || other.is_sparse,
        }
    }
}

/// A name, ended by a zero byte as C has it.
fn until_zero(body: &[u8]) -> Result<Vec<u8>, &'static str> {
    match body.split(|byte| *byte == 0).next() {
        Some(name) if !name.is_empty() => Ok(name.to_vec()),
        _ => Err("a long name is empty"),
    }
}

/// Keyword and value of a record, and what follows it.
type Record<'b> = (&'b [u8], &'b [u8], &'b [u8]);

/// The first record of `body`.
fn record(body: &[u8]) -> Result<Record<'_>, &'static str> {
    let space = body.iter().position(|byte| *byte == b' ');
    let len = space.and_then(|space| number(&body[..space]));
    let (Some(space), Some(len)) = (space, len) else {
        return Err("a PAX record does not begin with its length");
    };
    let whole = usize::try_from(len)
        .ok()
        .and_then(|len| body.split_at_checked(len));
    let text = whole.and_then(|(record, rest)| Some((record.get(space + 1..)?.strip_suffix(b"\n")?, rest)));
    let (text, rest) = text.ok_or("a PAX record does not end with a newline where its length says")?;
    match text.iter().position(|byte| *byte == b'=') {
        Some(equals) if equals > 0 => Ok((&text[..equals], &text[equals + 1..], rest)),
        _ => Err("a PAX record has no keyword"),
    }
}

fn path(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    if value.is_empty() || value.contains(&0) {
        return Err("a path in a PAX record is empty or holds a zero byte");
    }
    Ok(value.to_vec())
}

/// A decimal number: digits and nothing else.
fn number(digits: &[u8]) -> Option<u64> {
    let is_number = digits.iter().all(u8::is_ascii_digit);
    str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One record, its length worked out.
    pub(in crate::source) fn record_of(keyword: &str, value: &[u8]) -> Vec<u8> {
        let rest = [b" ", keyword.as_bytes(), b"=", value, b"\n"].concat();
        let fits = |len: &usize| len.to_string().len() + rest.len() == *len;
        let len = (rest.len()..).find(fits).unwrap();
        [len.to_string().into_bytes(), rest].concat()
    }

    #[test]
    fn records_are_taken_by_their_length() {
        let path = |value: &[u8]| record_of("path", value);
        let sparse = record_of("GNU.sparse.major", b"1");
        for (body, name, is_sparse) in [
            (path(b"n\nl"), Some(&b"n\nl"[..]), false),
            // Not ended by an empty line in a value.
            (
                [record_of("comment", b"a\n\n"), path(b"x")].concat(),
                Some(b"x"),
                false,
            ),
            ([path(b"x\n\ny"), sparse.clone()].concat(), Some(b"x\n\ny"), true),
            ([path(b"x"), path(b"y")].concat(), Some(b"y"), false),
            (path(b"\xff="), Some(b"\xff="), false),
            // What looks like a record is a value.
            (record_of("comment", &sparse), None, false),
            (sparse.clone(), None, true),
            (Vec::new(), None, false),
        ] {
            let extended =
                Extended::of_records(&body).unwrap_or_else(|why| panic!("{}: {why}", body.escape_ascii()));
            assert_eq!(extended.name.as_deref(), name, "{}", body.escape_ascii());
            assert_eq!(extended.is_sparse, is_sparse, "{}", body.escape_ascii());
        }
        let both = [record_of("linkpath", b"t"), record_of("size", b"123456789012345")].concat();
        let both = Extended::of_records(&both).unwrap();
        assert_eq!(
            (both.link.as_deref(), both.size),
            (Some(&b"t"[..]), Some(123_456_789_012_345))
        );
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let whole = record_of("path", b"x");
        let bodies = [
            &b"garbage"[..],
            b"8 pathX\n",
            b"8 path=x\n",
            b"10 path=x",
            b"11 path=x\n",
            b"0 x 22 GNU.sparse.major=1\n",
            b"4 =\n",
            b"5 =x\n",
            b"1 \n",
            b"+9 path=x\n",
            b" 9 path=x\n",
            b"99999999999999999999 path=x\n",
        ];
        let mut bodies: Vec<Vec<u8>> = bodies.iter().map(|body| body.to_vec()).collect();
        bodies.extend((1..whole.len()).map(|end| whole[..end].to_vec()));
        bodies.push([&whole[..], &[0; 3]].concat());
        for size in [&b"abc"[..], b"-4", b"+4", b"", b"4 ", b"99999999999999999999"] {
            bodies.push(record_of("size", size));
        }
        bodies.extend([&b""[..], b"a\0"].map(|path| record_of("path", path)));
        for body in bodies {
            assert!(Extended::of_records(&body).is_err(), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn no_bytes_panic() {
        // Short bodies of the bytes that records are made of: every way in which one can end too early.
        let alphabet = b"19 =\npath";
        for code in 0..alphabet.len().pow(6) {
            let mut left = code;
            let body: Vec<u8> = (0..6)
                .map(|_| {
                    let byte = alphabet[left % alphabet.len()];
                    left /= alphabet.len();
                    byte
                })
                .collect();
            let _ = Extended::of_records(&body);
        }
    }

    #[test]
    fn a_member_has_one_name() {
        let name = |body: &[u8]| Extended::of_long_name(body).unwrap();
        let (long, record) = (name(b"long\0\0"), Extended::of_records(b"9 path=x\n").unwrap());
        assert_eq!(long.name.as_deref(), Some(&b"long"[..]));
        let link = Extended::of_long_link(b"to\0").unwrap();
        let all = link.clone().and(long.clone()).unwrap();
        assert_eq!((all.link, all.name), (link.link, long.name.clone()));
        assert!(long.clone().and(name(b"other")).is_err() && long.clone().and(record.clone()).is_err());
        assert!(Extended::of_long_name(b"\0x").is_err() && Extended::of_long_link(b"").is_err());
        // What holds for all members yields to what holds for one.
        assert_eq!(record.over(long).name.as_deref(), Some(&b"x"[..]));
    }
}
