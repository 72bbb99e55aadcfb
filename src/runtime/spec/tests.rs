use super::*;
use crate::runtime::PodRef;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnginx:x:101:102:nginx:/var/cache/nginx:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnginx:x:102:\ndialout:x:20:nginx,other\nvideo:x:44:other\n";

struct Case {
    sandbox: SandboxConfig,
    container: ContainerConfig,
    image: ImageProcess,
    v2: bool,
}

fn case() -> Case {
    let strings = |items: &[&str]| Some(items.iter().map(|item| (*item).to_owned()).collect());
    Case {
        sandbox: SandboxConfig {
            pod: PodRef { uid: "u".into(), namespace: "ns".into(), name: "web".into() },
            hostname: "web-0".into(),
            ..SandboxConfig::default()
        },
        container: ContainerConfig { name: "main".into(), ..ContainerConfig::default() },
        image: ImageProcess {
            env: strings(&["PATH=/bin", "A=image"]),
            entrypoint: strings(&["/entry"]),
            cmd: strings(&["serve"]),
            ..ImageProcess::default()
        },
        v2: false,
    }
}

impl Case {
    fn plan(&self) -> Result<Plan, RuntimeError> {
        plan(&Input {
            sandbox: &self.sandbox,
            container: &self.container,
            image: &self.image,
            passwd: PASSWD,
            group: GROUP,
            rootfs: Path::new("/rootfs"),
            files: Path::new("/run/pod/files"),
            shm: Path::new("/run/pod/shm"),
            termination_log: None,
            cgroup_path: "/kubepods/podu/main",
            cgroup_v2: self.v2,
            memory_controller: true,
            reaper: None,
            devices: &[],
        })
    }

    fn good(&self) -> Plan {
        self.plan().expect("plan")
    }

    fn message(&self) -> String {
        self.plan().unwrap_err().message
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().expect("array").iter().filter_map(Value::as_str).collect()
}

#[test]
fn libcontainer_reads_it() {
    let mut case = case();
    case.container.resources = Resources { memory_limit_bytes: 1, cpu_quota_us: 5000, ..Resources::default() };
    let config = case.good().config;
    let spec: libcontainer::oci_spec::runtime::Spec = serde_json::from_value(config.clone()).expect("a specification");
    assert!(spec.process().as_ref().expect("process").capabilities().is_none(), "the executor sets them");
    let linux = spec.linux().as_ref().expect("linux");
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/kubepods/podu/main")));
    let memory = linux.resources().as_ref().and_then(|resources| resources.memory().as_ref()).expect("memory");
    assert_eq!(memory.limit(), Some(6 << 20), "a floor");
    assert_eq!(config["linux"]["resources"]["cpu"], json!({"quota": 5000, "period": 100_000}));
}

#[test]
fn command_and_args_override_the_image() {
    let cases: [(&[&str], &[&str], &[&str]); 4] = [
        (&[], &[], &["/entry", "serve"]),
        (&[], &["x"], &["/entry", "x"]),
        (&["sh"], &[], &["sh"]),
        (&["sh"], &["-c", "x"], &["sh", "-c", "x"]),
    ];
    for (command, args, expected) in cases {
        let mut case = case();
        case.container.command = command.iter().map(|part| (*part).to_owned()).collect();
        case.container.args = args.iter().map(|part| (*part).to_owned()).collect();
        assert_eq!(texts(&case.good().config["process"]["args"]), expected);
    }
    let mut case = case();
    case.image = ImageProcess::default();
    assert_eq!(case.message(), "no command specified");
}

#[test]
fn the_environment_keeps_order_and_later_values_win() {
    let mut case = case();
    case.container.env = vec![("B".into(), "1".into()), ("A".into(), "own".into()), ("B".into(), "2".into())];
    assert_eq!(case.good().context.env, ["PATH=/bin", "A=own", "HOSTNAME=web-0", "B=2", "HOME=/root"]);
    case.image.env = None;
    assert_eq!(case.good().context.env[0], DEFAULT_PATH);
}

#[test]
fn users_are_found_in_the_image() {
    let user = |uid, gid, groups: &[u32]| User { uid, gid, groups: groups.to_vec() };
    let mut case = case();
    assert_eq!(case.good().context.user, user(0, 0, &[0]));
    case.image.user = "nginx".into();
    assert_eq!(case.good().context.user, user(101, 102, &[102, 20]));
    assert!(case.good().context.env.contains(&"HOME=/var/cache/nginx".to_owned()));
    case.image.user = "nginx:video".into();
    assert_eq!(case.good().context.user, user(101, 44, &[44, 20]));
    case.image.user = "5000:6000".into();
    assert_eq!(case.good().context.user, user(5000, 6000, &[6000]));
    case.image.user = "ghost".into();
    assert_eq!(case.message(), "unable to find user ghost: no matching entries in passwd file");
    case.container.security.run_as_user = Some(101);
    case.container.security.supplemental_groups = vec![7, 102];
    assert_eq!(case.good().context.user, user(101, 102, &[102, 20, 7]));
    case.container.security.strict_supplemental_groups = true;
    case.container.security.run_as_group = Some(3);
    assert_eq!(case.good().context.user, user(101, 3, &[3, 7, 102]));
}

#[test]
fn run_as_non_root_is_checked_in_the_kubelets_words() {
    let place = "(pod: \"web_ns(u)\", container: main)";
    let cases = [
        ("", None, Some("container has runAsNonRoot and image will run as root")),
        ("0", None, Some("container has runAsNonRoot and image will run as root")),
        (
            "nginx",
            None,
            Some("container has runAsNonRoot and image has non-numeric user (nginx), cannot verify user is non-root"),
        ),
        ("101", None, None),
        ("", Some(0), Some("container's runAsUser breaks non-root policy")),
        ("", Some(7), None),
    ];
    for (image, own, expected) in cases {
        let mut case = case();
        case.container.security.run_as_non_root = true;
        case.container.security.run_as_user = own;
        case.image.user = image.into();
        let message = case.plan().err().map(|error| error.message);
        assert_eq!(message, expected.map(|text| format!("{text} {place}")), "{image:?} {own:?}");
    }
}

#[test]
fn capabilities_are_exact() {
    let bit = |name: &str| 1u64 << CAPABILITIES.iter().position(|known| *known == name).expect("known");
    let default = capabilities(&Security::default()).expect("set");
    assert_eq!(default, 0xa804_25fb, "containerd's default set");
    let set = |add: &[&str], drop: &[&str]| {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        capabilities(&Security { capabilities_add: names(add), capabilities_drop: names(drop), ..Security::default() })
    };
    assert_eq!(set(&["NET_ADMIN"], &["ALL"]).expect("set"), bit("NET_ADMIN"));
    assert_eq!(set(&["CAP_SYS_TIME"], &["MKNOD"]).expect("set"), (default | bit("SYS_TIME")) & !bit("MKNOD"));
    assert_eq!(set(&["ALL"], &["sys_admin"]).expect("set"), !bit("SYS_ADMIN"));
    assert!(set(&["FLY"], &[]).unwrap_err().message.contains("\"FLY\""));
}

#[test]
fn mounts_follow_depth_and_replace_defaults() {
    let mut case = case();
    let mount = |destination: &str, read_only| Mount {
        source: "/host".into(),
        destination: destination.into(),
        read_only,
        ..Mount::default()
    };
    case.container.mounts = vec![mount("/data/sub", false), mount("/data", true), mount("/dev/shm/", false)];
    let config = case.good().config;
    let mounts = config["mounts"].as_array().expect("mounts");
    let places: Vec<&str> = mounts.iter().filter_map(|mount| mount["destination"].as_str()).collect();
    assert_eq!(places[places.len() - 3..], ["/data", "/data/sub", "/dev/shm/"]);
    assert!(!places.contains(&"/dev/shm") && !places.contains(&"/sys/fs/cgroup"), "v1 mounts no cgroups");
    assert_eq!(texts(&mounts[mounts.len() - 3]["options"]), ["rbind", "rprivate", "ro"]);
    assert!(config["linux"]["resources"]["unified"].is_null(), "v1 knows no files of v2");
    case.v2 = true;
    assert_eq!(case.good().config["linux"]["resources"]["unified"], json!({"memory.oom.group": "1"}));
    assert!(case.good().config.to_string().contains("/sys/fs/cgroup"));
}

#[test]
fn privileged_lifts_what_is_masked() {
    let mut case = case();
    assert_eq!(texts(&case.good().config["linux"]["maskedPaths"]), MASKED_PATHS);
    case.container.security.privileged = true;
    let plan = case.good();
    assert!(plan.config["linux"]["maskedPaths"].is_null());
    assert_eq!(plan.context.capabilities, u64::MAX);
    assert_eq!(plan.config["linux"]["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
}

#[test]
fn namespaces_are_the_pods_or_the_hosts() {
    let mut case = case();
    assert_eq!(case.good().config["linux"]["namespaces"], json!([{"type": "mount"}, {"type": "pid"}]));
    case.sandbox.host_pid = true;
    assert_eq!(case.good().config["linux"]["namespaces"], json!([{"type": "mount"}]));
}

#[test]
fn groups_and_hosts_are_named_as_the_kubelet_does() {
    assert_eq!(pod_cgroup("/", "u", Qos::Guaranteed), "/kubepods/podu");
    assert_eq!(pod_cgroup("/edge", "u", Qos::BestEffort), "/edge/kubepods/besteffort/podu");
    let mut sandbox = case().sandbox;
    sandbox.hosts_entries = vec![("1.2.3.4".into(), vec!["a".into(), "b".into()])];
    let text = hosts_file(&sandbox, "10.42.0.2".parse().ok());
    assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
    assert!(text.ends_with("10.42.0.2\tweb-0\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
}
