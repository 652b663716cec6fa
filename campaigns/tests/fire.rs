//! Short campaigns of `campaign fire`; the long ones are its defaults.

use std::process::Command;

/// Runs a campaign; all that it requires must hold.
fn fire(args: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_campaign"))
        .arg("fire")
        .args(args)
        .output()
        .expect("campaign starts");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", output.status);
    assert!(text.contains("no wrong byte"), "it said nothing of what it read");
}

/// A campaign of a few seconds: every hazard 50 times.
const SHORT: [&str; 6] = ["--reads", "200000", "--hazards", "50", "--limit", "120"];

#[test]
fn nothing_wrong_is_read_under_fire_over_sim() {
    fire(&[&SHORT[..], &["--fabric", "sim"]].concat());
}

#[test]
fn nothing_wrong_is_read_under_fire_over_sim_without_a_fence() {
    fire(&[&SHORT[..], &["--fabric", "sim-unfenced"]].concat());
}

#[test]
fn nothing_wrong_is_read_under_fire_over_local() {
    fire(&[
        "--fabric",
        "local",
        "--reads",
        "200000",
        "--hazards",
        "10",
        "--lease",
        "30",
        "--limit",
        "120",
    ]);
}

/// What a campaign requires can be missed, and then it fails.
#[test]
fn a_campaign_whose_hazards_did_not_happen_fails() {
    let output = Command::new(env!("CARGO_BIN_EXE_campaign"))
        .args([
            "fire",
            "--reads",
            "1000",
            "--hazards",
            "1000000000",
            "--limit",
            "1",
        ])
        .output()
        .expect("campaign starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && text.contains("TOO FEW"), "{text}");
}

#[test]
#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]
fn nothing_wrong_is_read_under_fire_over_verbs() {
    fire(&[
        "--fabric",
        "verbs",
        "--reads",
        "5000",
        "--hazards",
        "1",
        "--lease",
        "1000",
        "--readers",
        "3",
        "--keys",
        "2000",
        "--operations",
        "4000",
        "--long",
        "--limit",
        "240",
    ]);
}
