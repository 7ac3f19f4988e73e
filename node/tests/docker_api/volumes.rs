//! Volumes over HTTP.

use serde_json::{Value, json};

use crate::fake::Served;
use crate::http::{delete, filters, get, post, send};

fn names(list: &Value) -> Vec<String> {
    let volumes = list["Volumes"].as_array().unwrap().iter();
    volumes.map(|volume| volume["Name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn volumes_are_made_listed_inspected_and_removed() {
    let served = Served::inactive().await;
    let s = &served.socket;
    assert_eq!(get(s, "/v1.50/volumes").await.json(), json!({"Volumes": [], "Warnings": []}));
    let body = json!({"Name": "data", "Driver": "local", "Labels": {"a": "b"}, "DriverOpts": null});
    let made = post(s, "/v1.50/volumes/create", body.clone()).await;
    assert_eq!(made.status, 201);
    let made = made.json();
    assert_eq!((&made["Name"], &made["Driver"], &made["Scope"]), (&json!("data"), &json!("local"), &json!("local")));
    assert_eq!((&made["Labels"], &made["Options"]), (&json!({"a": "b"}), &json!({})));
    assert!(made["Mountpoint"].as_str().unwrap().ends_with("/volumes/data/_data"), "{made}");
    assert!(made["CreatedAt"].as_str().unwrap().ends_with('Z'), "{made}");
    assert_eq!(post(s, "/volumes/create", body).await.json(), made, "a second time changes nothing");
    assert_eq!(get(s, "/volumes/data").await.json(), made);
    post(s, "/volumes/create", json!({"Name": "other", "DriverOpts": {"type": "tmpfs", "device": "tmpfs"}})).await;
    for (filter, expected) in [
        (json!({}), vec!["data", "other"]),
        (json!({"name": ["dat"]}), vec!["data"]),
        (json!({"label": ["a"]}), vec!["data"]),
        (json!({"label": ["a=c"]}), vec![]),
        (json!({"driver": ["local"]}), vec!["data", "other"]),
        (json!({"driver": ["nfs"]}), vec![]),
        (json!({"dangling": ["false"]}), vec![]),
        (json!({"dangling": {"true": true}}), vec!["data", "other"]),
    ] {
        let list = get(s, &format!("/volumes?{}", filters(filter.clone()))).await.json();
        assert_eq!(names(&list), expected, "{filter}");
    }
    assert_eq!(get(s, &format!("/volumes?{}", filters(json!({"size": ["1"]})))).await.status, 400);
    assert_eq!(delete(s, "/volumes/data").await.status, 204);
    assert_eq!(delete(s, "/volumes/data").await.status, 404);
    assert_eq!(delete(s, "/volumes/data?force=1").await.status, 204);
    assert_eq!(send(s, "PUT", "/volumes/other?version=1", Some("application/json"), b"{}".to_vec()).await.status, 501);
}

#[tokio::test]
async fn what_is_wrong_is_said_as_docker_says_it() {
    let served = Served::inactive().await;
    let s = &served.socket;
    for (body, status, words) in [
        (json!({"Name": "a/b"}), 400, "includes invalid characters for a local volume name"),
        (json!({"Name": "../../etc"}), 400, "includes invalid characters"),
        (json!({"Name": "x"}), 400, "volume name is too short"),
        (json!({"Name": "xx", "Driver": "rexray"}), 404, "error looking up volume plugin rexray"),
        (json!({"Name": "xx", "DriverOpts": {"bad": "1"}}), 400, "invalid option: \"bad\""),
        (json!({"Name": "xx", "DriverOpts": {"type": "nfs"}}), 400, "missing required option: \"device\""),
        (json!({"Name": "xx", "ClusterVolumeSpec": {"Group": "g"}}), 501, "ClusterVolumeSpec"),
        (json!({"Name": 5}), 400, "invalid JSON"),
    ] {
        let answer = post(s, "/volumes/create", body.clone()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        assert!(answer.message().contains(words), "{body}: {}", answer.message());
    }
    for path in ["/volumes/nope", "/volumes/..%2f..%2fetc", "/volumes/.new-x"] {
        assert_eq!(get(s, path).await.status, 404, "{path}");
        assert_eq!(delete(s, path).await.status, 404, "{path}");
    }
    assert_eq!(names(&get(s, "/volumes").await.json()), Vec::<String>::new());
}

#[tokio::test]
async fn a_prune_takes_what_docker_takes() {
    let served = Served::inactive().await;
    let s = &served.socket;
    let prune = async |version: &str, filter: Value| {
        let answer = send(s, "POST", &format!("{version}/volumes/prune?{}", filters(filter)), None, Vec::new()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut deleted: Vec<String> = serde_json::from_value(answer.json()["VolumesDeleted"].clone()).unwrap();
        deleted.sort();
        deleted
    };
    let make = async |name: &str| {
        let made = post(s, "/volumes/create", json!({"Name": name, "Labels": {"of": name}})).await;
        made.json()["Name"].as_str().unwrap().to_owned()
    };
    let anonymous = make("").await;
    make("one").await;
    make("two").await;
    let options = json!({"Name": "mounted", "DriverOpts": {"type": "tmpfs", "device": "tmpfs"}});
    post(s, "/volumes/create", options).await;
    assert_eq!(prune("", json!({})).await, [anonymous]);
    assert_eq!(prune("", json!({"all": ["true"], "label!": ["of=two"]})).await, ["one"]);
    // Before that filter was there, a prune took all.
    assert_eq!(prune("/v1.41", json!({})).await, ["two"]);
    assert_eq!(names(&get(s, "/volumes").await.json()), ["mounted"]);
    let bad = send(s, "POST", &format!("/volumes/prune?{}", filters(json!({"until": ["1h"]}))), None, vec![]).await;
    assert_eq!(bad.status, 400);
}
