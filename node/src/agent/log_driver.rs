//! A task's log driver as the runtime takes it.

use std::collections::BTreeMap;

use deploy::logging::{LogTag, LogTarget, Logging, LoggingError, SyslogAddress, TagField};
use deploy::model::Task;
use runtime::{LogConfig, LogForward};

/// Where systemd's journal listens.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Bytes of all fields together; more are left out, so that a label cannot keep a task from its start.
const MAX_FIELDS: usize = 12 << 10;

/// The configuration of a container's log. `container_name`, `labels` and `env` are the container's.
pub(super) fn config(
    task: &Task,
    container_name: &str,
    container_id: &str,
    image_id: &str,
    labels: &BTreeMap<String, String>,
    env: &[String],
) -> Result<LogConfig, LoggingError> {
    let logging = Logging::of(task.spec.log_driver.as_ref())?;
    let mut config = LogConfig { files: logging.files.is_some(), ..LogConfig::default() };
    if let Some(files) = logging.files {
        (config.max_size, config.max_files) = (files.max_size, files.max_files);
    }
    let Some(forward) = &logging.forward else { return Ok(config) };
    let image_name = &task.spec.container.image;
    let short = |text: &str| text.chars().take(12).collect::<String>();
    let tag = logging.tag.clone().unwrap_or_else(LogTag::usual).expand(|field| match field {
        TagField::Id => short(container_id),
        TagField::FullId => container_id.to_owned(),
        TagField::Name => container_name.to_owned(),
        TagField::ImageName => image_name.clone(),
        TagField::ImageId => short(image_id.trim_start_matches("sha256:")),
        TagField::ImageFullId => image_id.to_owned(),
        TagField::DaemonName => "shoal".to_owned(),
    });
    let mut room = MAX_FIELDS;
    let mut fields = logging.fields(labels, env);
    fields.retain(|name, value| {
        let needs = name.len() + value.len() + 16;
        let fits = needs <= room;
        room -= if fits { needs } else { 0 };
        fits
    });
    config.forward = Some(LogForward {
        target: match &forward.target {
            LogTarget::Journal => runtime::LogTarget::Journal(JOURNAL.into()),
            LogTarget::Syslog { address, facility } => runtime::LogTarget::Syslog {
                address: match address {
                    SyslogAddress::Unix(path) => runtime::SyslogAddress::Unix(path.into()),
                    SyslogAddress::Udp(address) => runtime::SyslogAddress::Udp(*address),
                    SyslogAddress::Tcp(address) => runtime::SyslogAddress::Tcp(*address),
                },
                facility: *facility,
            },
        },
        // Of a template that came to nothing nothing could be found again.
        tag: if tag.is_empty() { short(container_id) } else { tag.replace(char::is_control, "_") },
        container_name: container_name.to_owned(),
        image_name: image_name.clone(),
        fields,
        buffer: forward.buffer,
    });
    Ok(config)
}

#[cfg(test)]
mod tests {
    use deploy::model::{LogDriver, TaskId};

    use super::*;

    #[test]
    fn a_driver_becomes_a_configuration() {
        let mut task = Task { id: TaskId::new("t1"), service_name: "web".into(), slot: 2, ..Task::default() };
        task.spec.container.image = "web:1".into();
        let id = "0123456789abcdef";
        let labels = [("a".to_owned(), "1".to_owned()), ("big".to_owned(), "x".repeat(20_000))].into();
        let made =
            |task: &Task| config(task, &task.name(), id, "sha256:fedcba9876543210", &labels, &["B=2".to_owned()]);
        assert_eq!(made(&task), Ok(LogConfig::default()));
        let options = [("tag", "{{.Name}} {{.ImageID}} {{.ID}}"), ("labels", "a,big"), ("env", "B")];
        let options = options.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        task.spec.log_driver = Some(LogDriver { name: "journald".into(), options });
        let forward = made(&task).unwrap().forward.unwrap();
        assert_eq!(forward.tag, "web.2.t1 fedcba987654 0123456789ab");
        assert_eq!(forward.fields.keys().collect::<Vec<_>>(), ["B", "a"], "what is too long is left out");
        assert_eq!((forward.container_name.as_str(), forward.image_name.as_str()), ("web.2.t1", "web:1"));
        task.spec.log_driver = Some(LogDriver { name: "none".into(), ..LogDriver::default() });
        let none = made(&task).unwrap();
        assert_eq!((none.files, none.forward), (false, None));
        task.spec.log_driver = Some(LogDriver { name: "fluentd".into(), ..LogDriver::default() });
        assert!(made(&task).unwrap_err().to_string().contains("fluentd"));
    }
}
