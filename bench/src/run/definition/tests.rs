use super::{Bound, Count, Definition, Lengths, Order, SideName};

const EXAMPLE: &str = include_str!("../example.toml");

fn refused(text: &str) -> String {
    Definition::parse(text, "DEF.toml").unwrap_err().to_string()
}

/// A definition with one case, which has these lines too.
fn case(lines: &str) -> String {
    format!("title = \"t\"\nnetwork = \"local\"\n[[case]]\nname = \"c\"\nvalue_bytes = 4096\n{lines}\n")
}

#[test]
fn the_example_is_read_as_it_says() {
    let definition = Definition::parse(EXAMPLE, "example").unwrap();
    let [first, second] = &definition.case[..] else {
        panic!("two cases")
    };
    assert_eq!(first.lengths, [Lengths::Fixed(4096), Lengths::Fixed(65536)]);
    assert_eq!(
        (first.depth.as_slice(), first.batch.as_slice()),
        (&[16, 64][..], &[64][..])
    );
    assert_eq!(first.values, Count::Values(2000));
    assert_eq!(second.rates, [Some(50_000.0), Some(200_000.0)]);
    assert_eq!(second.beside, Some(vec![SideName::Pread, SideName::KvTickets]));
    assert_eq!(definition.target[0].bound, Bound::AtLeast(1.0));
}

#[test]
fn what_is_not_said_has_a_default() {
    let definition = Definition::parse(&case(""), "DEF.toml").unwrap();
    let only = &definition.case[0];
    assert_eq!((only.order, only.values), (Order::Epoch, Count::Values(1024)));
    assert!(only.verify && only.check && only.beside.is_none());
    assert_eq!((only.rates.as_slice(), definition.blocks.0), (&[None][..], 12));
}

#[test]
fn an_unknown_key_is_told_with_its_line_and_what_there_is() {
    let error = refused(&case("dept = 4"));
    assert!(
        error.contains("line 6") && error.contains("unknown field `dept`") && error.contains("`depth`"),
        "{error}"
    );
    let error = refused(&case("beside = [\"pread\", \"mongo\"]"));
    assert!(
        error.contains("line 6") && error.contains("mongo") && error.contains("`lmdb+crc`"),
        "{error}"
    );
}

#[test]
fn an_impossible_value_is_told_with_its_line_and_bounds() {
    for (line, value, remedy) in [
        ("depth = 0", "0 is out of range", "give 1 to 16384"),
        ("batch = [1, -3]", "-3 is out of range", "give 1 to 65536"),
        ("threads = []", "an empty list", "at least one"),
        ("values = 0", "0 is out of range", "give 1 to"),
        ("order = \"random\"", "random", "`uniform`"),
        ("verify = \"yes\"", "yes", "boolean"),
        ("rate = -1.0\nloop = \"open\"", "-1", "above 0"),
    ] {
        let error = refused(&case(line));
        assert!(
            error.contains("line 6") && error.contains(value) && error.contains(remedy),
            "{line}: {error}"
        );
    }
    let error = refused(&case("").replace("value_bytes = 4096", "value_bytes = { mixed = [1] }"));
    assert!(
        error.contains("line 5") && error.contains("`mix`") && error.contains("`files`"),
        "{error}"
    );
}

#[test]
fn what_contradicts_itself_is_told_with_a_remedy() {
    for (lines, told) in [
        ("loop = \"open\"", "needs `rate`"),
        ("rate = 5", "needs loop = \"open\""),
        ("zipf = 1.1", "order = \"zipf\""),
        ("values = 3\nworking_set_l3 = 4", "leave one out"),
        (
            "start = \"cold\"\nloop = \"open\"\nrate = 5",
            "needs loop = \"closed\"",
        ),
        ("start = \"cold\"\norder = \"uniform\"", "needs order = \"epoch\""),
        ("beside = [\"kv\"]", "leave it out"),
    ] {
        let error = refused(&case(lines));
        assert!(
            error.contains(told) && error.contains("case `c`"),
            "{lines}: {error}"
        );
        assert!(error.contains("line 3"), "{lines}: {error}");
    }
    let unset = case("").replace("value_bytes = 4096", "value_bytes = { files = \"$VKV_NOT_SET\" }");
    assert!(refused(&unset).contains("VKV_NOT_SET is not set"));
    let files = case("values = 9").replace("value_bytes = 4096", "value_bytes = { files = \"d\" }");
    assert!(refused(&files).contains("the files are the values"));
}

#[test]
fn a_target_names_what_there_is() {
    let target = |lines: &str| {
        let head = "[[target]]\nname = \"t\"\nmetric = \"latency\"\n";
        case("beside = [\"pread\"]") + head + lines
    };
    let over = "over = [{ side = \"pread\" }]\n";
    Definition::parse(&target(&format!("case = \"c\"\nat_most = 1.1\n{over}")), "d").unwrap();
    let error = refused(&target(&format!("case = \"other\"\nat_most = 1.1\n{over}")));
    assert!(
        error.contains("line 10") && error.contains("no case `other`") && error.contains("`c`"),
        "{error}"
    );
    let error = refused(&target(
        "case = \"c\"\nat_most = 1.1\nover = [{ side = \"lmdb\" }]\n",
    ));
    assert!(error.contains("not measured beside `lmdb`"), "{error}");
    let error = refused(&target(&format!("case = \"c\"\n{over}")));
    assert!(error.contains("one of `at_most` and `at_least`"), "{error}");
}
