//! A report as JSON that people can read too: a field a line, and a list of numbers on one.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

use crate::Error;

/// The text.
pub(crate) fn text<T: Serialize>(value: &T) -> Result<String, Error> {
    let mut out = Vec::new();
    let lines = Lines {
        objects: PrettyFormatter::new(),
        lists: CompactFormatter,
    };
    value.serialize(&mut Serializer::with_formatter(&mut out, lines))?;
    out.push(b'\n');
    Ok(String::from_utf8(out)?)
}

/// Objects as they are printed, lists as they are packed.
struct Lines {
    objects: PrettyFormatter<'static>,
    lists: CompactFormatter,
}

impl Formatter for Lines {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.lists.begin_array(out)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.lists.end_array(out)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.lists.begin_array_value(out, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.objects.begin_object(out)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.objects.end_object(out)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.objects.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.objects.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.objects.end_object_value(out)
    }
}
