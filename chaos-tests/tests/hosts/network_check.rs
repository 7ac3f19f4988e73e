//! What a host says of its networks: `network inspect --verbose`, and `network check` when all is well and when it is not.

use std::process::Output;

use anyhow::{Context, Result, bail, ensure};
use chaos_tests::hosts::{Cluster, Host, IMAGE, SOON, ServiceDraft};
use serde_json::{Value, json};

use crate::{binaries, with};

/// A command of `shoal` on a host.
fn shoal(host: &Host, words: &[&str]) -> Result<Output> {
    let socket = format!("unix://{}", host.api().socket().display());
    Ok(host.run(&[&["-H", socket.as_str()], words].concat())?)
}

/// The lines of a check on a host, and whether its exit code says that something is wrong.
fn check(host: &Host, words: &[&str]) -> Result<(Vec<Value>, bool)> {
    let output = shoal(host, &[&["network", "check", "--format", "json"], words].concat())?;
    let text = String::from_utf8(output.stdout)?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context(text.clone())?;
    match output.status.code() {
        Some(code @ 0..=1) if !lines.is_empty() => Ok((lines, code == 1)),
        code => bail!("network check on {} ended with {code:?}: {text}{errors}", host.name()),
    }
}

/// Checks until the lines are as wanted: the state that is made takes a moment to be everywhere.
async fn eventually(host: &Host, what: &str, fine: impl Fn(&[Value], bool) -> bool) -> Result<Vec<Value>> {
    let looked = || async {
        match tokio::task::block_in_place(|| check(host, &[])) {
            Ok((lines, wrong)) if fine(&lines, wrong) => Ok(lines),
            Ok((lines, _)) => Err(serde_json::to_string_pretty(&lines).unwrap_or_default()),
            Err(error) => Err(format!("{error:#}")),
        }
    };
    Ok(host.api().wait_for(&format!("{what}, on {}", host.name()), SOON, looked).await?)
}

/// Whether a line is wrong, of this check, and has these words.
fn complains(lines: &[Value], check: &str, words: &[&str]) -> bool {
    lines.iter().any(|line| {
        let text = format!("{} {} {}", line["Subject"], line["Detail"], line["Advice"]);
        line["Check"] == check && line["Result"] == "wrong" && words.iter().all(|word| text.contains(word))
    })
}

fn nft(host: &Host, words: &str) -> Result<()> {
    let run = || std::process::Command::new("nft").arg(words).output();
    let output = host.client()?.visit(run)?;
    ensure!(output.status.success(), "nft {words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn ip(host: &Host, words: &str) -> Result<()> {
    let run = || std::process::Command::new("ip").args(words.split(' ')).output();
    let output = host.client()?.visit(run)?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_says_what_it_has_and_what_is_wrong() {
    if let Some(reason) = chaos_tests::hosts::rules_unusable() {
        eprintln!("skipped: {reason}");
        return;
    }
    with(Cluster::start(&binaries(), 1, 2), async |cluster| {
        let api = cluster.api(0);
        // Of both families, which are both asked for.
        let create = json!({"Name": "back", "Driver": "overlay", "EnableIPv6": true});
        api.post("/networks/create", &create).await?;
        let far = ServiceDraft::new("web", IMAGE, 4).network("back").publish(8080, 80).constraint("node.role==worker");
        api.create_service(&far.build()).await?;
        api.wait_running("web", 4, &[], SOON).await?;
        cluster.wait_port(8080).await?;

        // Each host says what it has; the manager has no task on that network, and says so.
        for (index, host) in cluster.hosts().iter().enumerate() {
            let seen = host.api().get("/networks/back?verbose=true&scope=swarm").await?;
            ensure!(seen["Host"]["Carried"] == (index > 0), "{seen}");
            ensure!(seen["Host"]["NodeID"] == cluster.id(index), "{seen}");
            if index == 0 {
                let told = seen["Host"]["Message"].as_str().unwrap_or_default();
                ensure!(told.contains("does not carry the network back") && told.contains("ingress"), "{told}");
                ensure!(seen["Services"] == json!({}), "{seen}");
                continue;
            }
            let web = &seen["Services"]["web"];
            ensure!(web["Tasks"].as_array().is_some_and(|tasks| tasks.len() == 4), "{seen}");
            ensure!(web["Ports"][0] == "Target: 80, Publish: 8080", "{seen}");
            ensure!(seen["Peers"].as_array().is_some_and(|peers| peers.len() == 2), "{seen}");
            let here = seen["Containers"].as_object().context("containers")?;
            ensure!(here.len() == 2 && here.keys().all(|id| id.len() == 64), "{seen}");
            let standing = &seen["Host"];
            ensure!(standing["Told"]["Revision"].as_u64() >= Some(1), "{seen}");
            ensure!(standing["AppliedRevision"].as_u64() >= Some(1) && standing["Connected"] == true, "{seen}");
        }
        let missing = cluster.api(1).get("/networks/nosuch?verbose=true").await.err().context("it is there")?;
        ensure!(missing.to_string().contains("does not carry"), "{missing}");

        // All is well everywhere, and each host knows the two others.
        for host in cluster.hosts() {
            let lines = eventually(host, "nothing to complain of", |_, wrong| !wrong).await?;
            let of = |check: &str| lines.iter().filter(|line| line["Check"] == check && line["Result"] == "ok").count();
            ensure!(of("peer") == 2 && of("revision") == 1 && of("kernel") == 1 && of("way out") <= 1, "{lines:#?}");
        }
        let lines = eventually(cluster.host(1), "names, addresses and paths", |_, wrong| !wrong).await?;
        for wanted in ["names", "vip", "addresses", "path", "way out"] {
            ensure!(lines.iter().any(|l| l["Check"] == wanted && l["Result"] == "ok"), "{wanted}: {lines:#?}");
        }
        for wanted in ["vip", "path"] {
            let six = |line: &Value| line["Detail"].as_str().is_some_and(|detail| detail.contains("fd"));
            ensure!(lines.iter().any(|l| l["Check"] == wanted && six(l)), "{wanted} by IPv6: {lines:#?}");
        }
        let (lines, wrong) = check(cluster.host(0), &["back"])?;
        ensure!(!wrong && lines.iter().any(|l| l["Check"] == "network" && l["Result"] == "skipped"), "{lines:#?}");

        // VXLAN is closed on one host: the others name it and the port.
        nft(
            cluster.host(2),
            "add table inet shut; add chain inet shut in { type filter hook prerouting priority -300; }",
        )?;
        nft(cluster.host(2), "add rule inet shut in udp dport 4789 drop")?;
        let closed = |lines: &[Value], wrong: bool| {
            wrong && complains(lines, "path", &["back to host-3", "UDP port 4789"]) && !complains(lines, "peer", &[])
        };
        eventually(cluster.host(1), "a closed VXLAN port", closed).await?;
        nft(cluster.host(2), "delete table inet shut")?;

        // The wire to one host carries less than it says.
        ip(cluster.host(2), "link set eth0 mtu 1400")?;
        let narrow = |lines: &[Value], wrong: bool| wrong && complains(lines, "peer", &["host-3", "only 1400 bytes"]);
        eventually(cluster.host(1), "a narrow wire", narrow).await?;
        ip(cluster.host(2), "link set eth0 mtu 1500")?;

        // A firewall drops what is forwarded.
        nft(cluster.host(1), "add table ip wall; add chain ip wall forward { type filter hook forward priority 10; }")?;
        nft(cluster.host(1), "add rule ip wall forward drop")?;
        let walled = |lines: &[Value], wrong: bool| {
            wrong && complains(lines, "firewall", &["wall forward"]) && complains(lines, "way out", &["firewall"])
        };
        eventually(cluster.host(1), "a firewall", walled).await?;
        nft(cluster.host(1), "delete table ip wall")?;

        // A daemon is gone: its control port is.
        cluster.host(2).kill_daemon()?;
        let gone = |lines: &[Value], wrong: bool| wrong && complains(lines, "peer", &["host-3", "2377"]);
        eventually(cluster.host(1), "a daemon that is gone", gone).await?;
        cluster.host(2).start_daemon()?;
        cluster.host(2).wait_ready().await?;
        eventually(cluster.host(1), "all well again", |_, wrong| !wrong).await?;

        // Without managers a host still says what it has, and that nobody tells it more.
        cluster.host(0).kill_daemon()?;
        let alone = |lines: &[Value], wrong: bool| {
            wrong && complains(lines, "revision", &["no manager"]) && !complains(lines, "names", &[])
        };
        eventually(cluster.host(1), "no manager", alone).await?;
        let seen = cluster.api(1).get("/networks/back?verbose=true").await?;
        ensure!(seen["Host"]["Connected"] == false && seen["Services"]["web"]["Tasks"][3].is_object(), "{seen}");
        cluster.host(0).start_daemon()?;
        cluster.host(0).wait_ready().await?;
        Ok(())
    })
    .await;
}
