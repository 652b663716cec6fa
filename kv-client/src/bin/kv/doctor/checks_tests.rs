//! Findings from facts that this machine does not have.

use super::super::system::Opened;
use super::*;

fn good_port() -> PortFacts {
    PortFacts {
        number: 1,
        active: true,
        state: "active".into(),
        link_layer: "Ethernet".into(),
        active_mtu_bytes: 4096,
        max_mtu_bytes: 4096,
        gid: Ok("gid 1 of port 1".into()),
        netdev: Some("eth0".into()),
        netdev_mtu_bytes: Some(9000),
    }
}

fn device(name: &str, ports: Vec<PortFacts>) -> DeviceFacts {
    let opened = Opened {
        firmware: "1".into(),
        max_qp_rd_atom: 16,
        on_demand: false,
        on_demand_read: false,
        ports,
    };
    DeviceFacts {
        name: name.into(),
        opened: Ok(opened),
    }
}

fn of(judge: impl FnOnce(&mut Vec<Finding>)) -> Vec<Finding> {
    let mut findings = Vec::new();
    judge(&mut findings);
    findings
}

fn statuses(findings: &[Finding]) -> Vec<Status> {
    findings.iter().map(|finding| finding.status).collect()
}

#[test]
fn a_good_machine_is_usable() {
    let devices = Ok(vec![device("rxe0", vec![good_port()])]);
    let findings = of(|findings| {
        libraries_and_devices(&devices, findings);
        each_device(devices.as_ref().unwrap(), findings);
        permissions(
            &[Node {
                path: "/dev/infiniband/uverbs0".into(),
                opened: Ok(()),
            }],
            findings,
        );
        memory_lock(None, false, findings);
    });
    assert!(
        findings.iter().all(|finding| finding.status == Status::Ok),
        "{findings:?}"
    );
    assert!(usable(&devices, &findings));
    assert!(verdict(&devices, true, false).contains("--data"));
}

#[test]
fn a_machine_without_rdma_says_so_and_names_local() {
    let devices: Devices = Err("libibverbs.so.1 cannot be opened".into());
    let findings = of(|findings| libraries_and_devices(&devices, findings));
    assert_eq!(statuses(&findings), [Status::Fail]);
    let remedy = findings[0].remedy.as_ref().unwrap();
    assert!(
        remedy.contains("local:") && remedy.contains("libibverbs1"),
        "{remedy}"
    );
    assert!(!usable(&devices, &findings));
    let verdict = verdict(&devices, false, false);
    assert!(verdict.contains("no RDMA") && verdict.contains("local:") && !verdict.contains('\n'));
}

#[test]
fn a_port_that_is_down_or_has_no_gid_fails_unless_another_is_good() {
    let down = PortFacts {
        active: false,
        state: "down".into(),
        ..good_port()
    };
    let bare = PortFacts {
        gid: Err("its table is empty".into()),
        ..good_port()
    };
    for bad in [down, bare] {
        let alone = [device("a", vec![bad.clone()])];
        let findings = of(|findings| each_device(&alone, findings));
        let failed: Vec<_> = findings
            .iter()
            .filter(|finding| finding.status == Status::Fail)
            .collect();
        assert_eq!(failed.len(), 1, "{findings:?}");
        assert!(failed[0].remedy.as_ref().unwrap().contains("ip "), "{failed:?}");
        assert!(!usable(&Ok(alone.to_vec()), &findings));
        let beside = [device("a", vec![bad]), device("b", vec![good_port()])];
        let findings = of(|findings| each_device(&beside, findings));
        assert!(usable(&Ok(beside.to_vec()), &findings), "{findings:?}");
        assert!(statuses(&findings).contains(&Status::Warn));
    }
}

#[test]
fn a_device_that_does_not_open_fails() {
    let devices = [DeviceFacts {
        name: "x".into(),
        opened: Err("EACCES".into()),
    }];
    let findings = of(|findings| each_device(&devices, findings));
    assert_eq!(statuses(&findings), [Status::Fail]);
    assert!(findings[0].detail.contains("EACCES"));
}

#[test]
fn a_small_mtu_names_the_interface() {
    let small = PortFacts {
        active_mtu_bytes: 1024,
        netdev_mtu_bytes: Some(1500),
        ..good_port()
    };
    let findings = of(|findings| mtu("rxe0", &small, findings));
    assert_eq!(statuses(&findings), [Status::Warn]);
    assert!(findings[0].detail.contains("active 1024, possible 4096"));
    assert!(
        findings[0]
            .remedy
            .as_ref()
            .unwrap()
            .contains("ip link set eth0 mtu 4500")
    );
    let limited = PortFacts {
        active_mtu_bytes: 2048,
        max_mtu_bytes: 2048,
        ..good_port()
    };
    assert_eq!(
        statuses(&of(|findings| mtu("x", &limited, findings))),
        [Status::Ok]
    );
}

#[test]
fn permissions_and_missing_nodes_have_different_remedies() {
    let node = |why: &str| Node {
        path: "/dev/infiniband/rdma_cm".into(),
        opened: Err(why.into()),
    };
    let nodes = [
        node("Permission denied (os error 13)"),
        node("No such file or directory (os error 2)"),
    ];
    let findings = of(|findings| permissions(&nodes, findings));
    assert_eq!(statuses(&findings), [Status::Fail, Status::Fail]);
    assert!(findings[0].remedy.as_ref().unwrap().contains("udev"));
    assert!(findings[1].remedy.as_ref().unwrap().contains("modprobe rdma_ucm"));
}

#[test]
fn locked_memory_is_judged_by_who_needs_how_much() {
    let status = |limit, exempt| statuses(&of(|findings| memory_lock(limit, exempt, findings)))[0];
    assert_eq!(status(None, false), Status::Ok);
    assert_eq!(status(Some(8 << 20), false), Status::Fail);
    assert_eq!(status(Some(8 << 20), true), Status::Ok);
    assert_eq!(status(Some(1 << 30), false), Status::Warn);
    assert_eq!(status(Some(64 << 30), false), Status::Ok);
}

#[test]
fn huge_pages_and_modules_never_fail_alone() {
    let some = HugePages {
        total: 10,
        free: 4,
        size_kib: 2048,
    };
    assert_eq!(statuses(&of(|findings| huge_pages(some, findings))), [Status::Ok]);
    assert_eq!(
        statuses(&of(|findings| huge_pages(HugePages::default(), findings))),
        [Status::Warn]
    );
    let loaded = BTreeSet::from(["ib_uverbs".to_owned(), "rdma_rxe".to_owned()]);
    let findings = of(|findings| modules(&loaded, true, findings));
    assert_eq!(findings[0].detail, "ib_uverbs; drivers: rdma_rxe");
    assert_eq!(
        statuses(&of(|findings| modules(&BTreeSet::new(), false, findings))),
        [Status::Warn]
    );
}

#[test]
fn mappings_are_told_apart_as_kernels_differ() {
    // What 6.1 answers, then 6.12.
    let old = MappingFacts {
        read_only: Err("EFAULT".into()),
        writable: Ok(1024),
    };
    let findings = of(|findings| mappings("rxe0", &old, findings));
    assert_eq!(statuses(&findings), [Status::Warn, Status::Warn]);
    assert!(findings[1].detail.contains("1024 of 1024 KiB dirty"));
    let new = MappingFacts {
        read_only: Ok(0),
        writable: Ok(0),
    };
    assert_eq!(
        statuses(&of(|findings| mappings("rxe0", &new, findings))),
        [Status::Ok, Status::Ok]
    );
}

#[test]
fn data_directories_are_judged_by_file_system() {
    let directory = |file_system: &str, writable| DirectoryFacts {
        shown: "/d".into(),
        writable,
        file_system: file_system.into(),
        free_bytes: 5_000_000,
    };
    let status = |facts: &DirectoryFacts| statuses(&of(|findings| data_directory(facts, findings)))[0];
    assert_eq!(status(&directory("ext4", Ok(()))), Status::Ok);
    assert_eq!(status(&directory("tmpfs", Ok(()))), Status::Warn);
    assert_eq!(status(&directory("0x6969", Ok(()))), Status::Warn);
    assert_eq!(status(&directory("ext4", Err("EROFS".into()))), Status::Fail);
}
