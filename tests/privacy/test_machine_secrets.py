"""Which variables and which parts of a configuration hold secrets, and which only look like it."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from app.privacy.machine_secrets import is_secret_name, of_configuration, of_environment, of_logins
from app.privacy.secret_names import Kind, kind_of
from tests.support.checkout import DATA
from tests.support.fake_secrets import noise
from tests.support.opencode import OpenCode

pytest_plugins = ["tests.support.opencode"]

VALUE = noise("value", "abcdefghijkmnopqrstuvwxyz0123456789", 32)
OTHER = noise("other", "abcdefghijkmnopqrstuvwxyz0123456789", 32)
PROVIDER_VARIABLES = (DATA / "provider_variables.txt").read_text("utf-8").split()
"""Of the providers of OpenCode 1.18.33."""
NO_CREDENTIALS = {
    "AWS_REGION",
    "AZURE_COGNITIVE_SERVICES_RESOURCE_NAME",
    "AZURE_RESOURCE_NAME",
    "CLOUDFLARE_ACCOUNT_ID",
    "CLOUDFLARE_GATEWAY_ID",
    "DATABRICKS_HOST",
    "GOOGLE_VERTEX_LOCATION",
    "GOOGLE_VERTEX_PROJECT",
    "INFOMANIAK_PRODUCT_ID",
    "NEON_AI_GATEWAY_BASE_URL",
    "PRIVATEMODE_ENDPOINT",
    "SNOWFLAKE_ACCOUNT",
    "WATSONX_AI_PROJECT_ID",
}
"""Variables of providers that say where, not who."""


def known(**variables: str) -> set[str]:
    return set(of_environment(variables))


# --- variables


@pytest.mark.parametrize("name", sorted({*PROVIDER_VARIABLES} - NO_CREDENTIALS))
def test_each_credential_of_a_provider_is_known(name: str) -> None:
    assert known(**{name: VALUE}) == {VALUE}


@pytest.mark.opencode
def test_each_credential_that_the_real_opencode_reads_is_known(opencode: OpenCode, tmp_path: Path) -> None:
    project = opencode.project(tmp_path / "project")
    with opencode.serve(project) as server:
        providers = server.request("GET", "/provider")["all"]
    names = {name for provider in providers for name in provider["env"]}
    assert {"ANTHROPIC_API_KEY", "AWS_BEARER_TOKEN_BEDROCK", "CLARIFAI_PAT", "WATSONX_AI_APIKEY"} <= names
    assert {name for name in names if not is_secret_name(name)} == NO_CREDENTIALS & names
    assert names == set(PROVIDER_VARIABLES)


@pytest.mark.parametrize(
    "name",
    [
        "API_KEY",
        "API_KEYS",
        "API_KEY_2",
        "OPENAI_API_KEY_TEAM",
        "AWS_ACCESS_KEY_ID",
        "TOKEN",
        "TOKEN_DEPLOY",
        "npm_token",
        "NGROK_AUTHTOKEN",
        "npm_config__authToken",
        "GITHUB_PAT",
        "CLIENT_SECRET",
        "SECRET_KEY_BASE",
        "VAULT_SECRETS_APP",
        "clientSecret",
        "secretAccessKey",
        "x-api-key",
        "DB_PASS",
        "MYSQL_PWD",
        "DB_PASSWORD_OLD",
        "pgpassword",
        "SSHPASS",
        "GPG_PASSPHRASE",
        "BORG_PASSPHRASE_NEW",
        "MYAPIKEY",
        "AZURE_CREDENTIALS",
        "GOOGLE_CREDENTIAL_JSON",
        "AZURE_STORAGE_CONNECTION_STRING",
        "SENTRY_DSN",
        "Helicone-Auth",
        "KEYSTORE_STOREPASS",
        "DB_PASSWORT",
        "CONTENTFUL_READ_TOKEN",
    ],
)
def test_a_value_under_a_name_of_a_secret_is_known(name: str) -> None:
    assert known(**{name: VALUE}) == {VALUE}


@pytest.mark.parametrize(
    "name", ["DB_PASSWORD2", "userPwd", "clientSecret", "X-Api-Key", "DATABASE_DSN", "contraseña", "secret_key_base"]
)
def test_what_is_a_secrets_name_in_a_text_is_one_of_a_variable(name: str) -> None:
    assert kind_of(name.encode()) in {Kind.PASSWORD, Kind.SECRET, Kind.CREDENTIALS}
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "KEYBOARD",
        "TOKENS",
        "MAX_TOKENS",
        "MONKEY",
        "SECRETARY",
        "COMPASS",
        "BYPASS",
        "PATTERN",
        "SSH_PUBLIC_KEY",
    ],
)
def test_a_value_under_another_name_is_not(name: str) -> None:
    assert known(**{name: VALUE}) == set()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("A_KEY", "1234567"),
        ("TOKEN_LIFETIME", "31536000"),
        ("A_KEY", " " * 20),
        ("USE_TOKEN", "true"),
        ("STRIPE_KEY", "disabled"),
        ("AUTH_TOKEN", "unavailable"),
        ("DB_PASSWORD", "postgres"),
        ("KEYSTORE_PASSWORD", "changeit"),
        ("SECRET_BACKEND", "kubernetes"),
        ("TOKEN_TYPE", "bearer-token-1"),
        ("SSH_AUTH_SOCK", "/run/user/1000/ssh-XXXXXXq3Zb7k/agent.1234"),
        ("SSH_KEY", "/home/dev/.ssh/id_ed25519"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "~/.config/gcloud/application_default_credentials.json"),
        ("APP_KEY_FILE", "C:\\Users\\dev\\app.key"),
        ("TOKEN_ENDPOINT", "https://login.example.com/oauth/token"),
        ("JWKS_KEY", "https://login.example.com/keys"),
        ("AUTH_CONFIG", "ldap-read-only-2"),
        ("AUTH0_DOMAIN", "example.eu.auth0.com"),
        ("GPG_KEY", "0123456789ABCDEF0123456789ABCDEF01234567"),
        ("PWD", "/home/dev/project"),
        ("SECRETS_PORT_80_TCP_ADDR", "10.43.120.11"),
        ("DATABASE_URL", "postgres://app@db.example.com/main"),
    ],
)
def test_paths_truths_short_numbers_and_plain_words_are_not(name: str, value: str) -> None:
    assert known(**{name: value}) == set()


def test_a_password_may_be_a_word_and_a_key_a_long_number() -> None:
    assert known(DB_PASSWORD="swordfish", A_KEY="0123456789", B_TOKEN="12345678") == {
        "swordfish",
        "0123456789",
        "12345678",
    }


def test_a_key_in_base64_that_begins_as_a_path_is_known() -> None:
    value = f"/{noise('slash', 'abcdefgABCDEFG', 28)}012/abc"
    assert known(STORAGE_KEY=value) == {value}


@pytest.mark.parametrize(
    "value",
    [
        f"postgres://app:{VALUE}@db.example.com:5432/main?sslmode=require",
        f"amqps://:{VALUE}@queue.example.com",
        f"https://{VALUE}@github.com/owner/repository.git",
        f"https://{VALUE}@o1.ingest.example.com/42",
        f"https://mcp.example.com/mcp/?region=eu&apiKey={VALUE}",
        f"app:{VALUE}@tcp(db.example.com:3306)/main",
        f"host=db.example.com user=app password={VALUE} dbname=main",
        f"Server=db.example.com;User Id=app;Password={VALUE};Encrypt=true",
        f"DefaultEndpointsProtocol=https;AccountName=example;AccountKey={VALUE};EndpointSuffix=example.com",
        f"-Xmx2g -Djavax.net.ssl.keyStorePassword={VALUE}",
        json.dumps({"type": "service_account", "project_id": "example-project", "private_key": VALUE}),
    ],
    ids=["url", "no-user", "user-alone", "sentry", "query", "go", "libpq", "ado", "azure", "java", "json"],
)
def test_a_secret_inside_of_a_value_is_known_whatever_the_variable_is_called(value: str) -> None:
    assert known(ANYTHING=value) == {VALUE}


def test_a_password_that_a_url_escapes_is_known_as_it_is_typed() -> None:
    assert known(DATABASE_URL="postgres://app:p%40ss%2Fword1@db/main") == {"p%40ss%2Fword1", "p@ss/word1"}


def test_a_key_of_many_lines_in_one_is_known_as_many() -> None:
    assert known(APP_PRIVATE_KEY=f"{VALUE}\\n{OTHER}") == {f"{VALUE}\\n{OTHER}", f"{VALUE}\n{OTHER}", VALUE, OTHER}


@pytest.mark.parametrize("name", ["GEMINI_API_KEY", "API_KEYS", "BOT_TOKEN", "DB_PASSWORD", "APP_CREDENTIALS"])
@pytest.mark.parametrize(
    "value",
    [
        f"{VALUE},{OTHER}",
        f"{VALUE}, {OTHER}",
        f"{VALUE} {OTHER}",
        f"{VALUE}\n{OTHER}\n",
        f"{VALUE}\r\n{OTHER}",
        f"{VALUE}\\n{OTHER}",
        f"{VALUE};{OTHER}",
        f"{VALUE}|{OTHER}",
        f"one:{VALUE},two:{OTHER}",
        f"one={VALUE}&two={OTHER}",
        f"'{VALUE}','{OTHER}'",
        f"['{VALUE}', '{OTHER}']",
        json.dumps([VALUE, OTHER]),
        json.dumps([{"key": VALUE}, {"key": OTHER}]),
        json.dumps({"one": VALUE, "two": [OTHER]}),
        json.dumps({"one": VALUE, "two": [OTHER]})[:-1],
    ],
    ids=[
        *("comma", "comma-and-space", "space", "lines", "windows-lines", "escaped-lines", "semicolon", "bar", "named"),
        *("query", "quoted", "python", "json", "objects", "object", "cut-object"),
    ],
)
def test_each_of_several_keys_in_one_variable_is_known(name: str, value: str) -> None:
    assert {VALUE, OTHER} <= known(**{name: value})


@pytest.mark.parametrize("name", ["GEMINI_API_KEY", "DB_PASSWORD", "APP_CREDENTIALS"])
def test_words_dates_paths_and_addresses_beside_keys_are_not(name: str) -> None:
    told = f"{VALUE},production,2024-06-01,us-east-1 /home/dev/keys https://example.com/keys {OTHER}"
    assert known(**{name: told}) == {told, VALUE, OTHER}


def test_keys_in_base64_keep_their_end() -> None:
    assert {f"{VALUE}==", f"{OTHER}="} <= known(API_KEYS=f"{VALUE}==,{OTHER}=")


@pytest.mark.parametrize(
    "value",
    [
        f"Authorization: Bearer {VALUE}\nX-Api-Key: {OTHER}",
        f"X-Org: example-1\nAuthorization: token {VALUE}, {OTHER}",
        f"api-key={VALUE},other-key={OTHER}",
        f"x-org=example-1,api-key={VALUE},Authorization=Bearer%20{OTHER},authorization={OTHER}",
    ],
)
def test_headers_in_a_variable_are_known_whatever_it_is_called(value: str) -> None:
    assert {VALUE, OTHER} <= known(CUSTOM_HEADERS=value)


# What `env` prints on machines of the kinds named, with the values made up.
MACHINES = {
    "github": """CI=true|GITHUB_ACTIONS=true|GITHUB_ACTOR=octocat|GITHUB_ACTOR_ID=7891909
        |GITHUB_API_URL=https://api.example.com|GITHUB_ENV=/home/dev/work/_temp/_runner_file_commands/set_env_8d31
        |GITHUB_EVENT_NAME=push|GITHUB_JOB=build|GITHUB_REF=refs/heads/main|GITHUB_REPOSITORY=owner/repository
        |GITHUB_REPOSITORY_ID=735798203|GITHUB_RETENTION_DAYS=90|GITHUB_RUN_ID=7354347118
        |GITHUB_SHA=f62ec4d27ca3c57169a8f108fb46574cfa785098|GITHUB_WORKFLOW=Continuous integration
        |GITHUB_WORKFLOW_REF=owner/repository/.github/workflows/ci.yml@refs/heads/main|RUNNER_ARCH=X64
        |RUNNER_NAME=GitHub Actions 4|RUNNER_TOOL_CACHE=/opt/hostedtoolcache|ImageVersion=20261102.1.0
        |RUNNER_TRACKING_ID=github_3beeb8a3-2d1f-479c-9165-2514faed7d26|ANDROID_HOME=/usr/local/lib/android/sdk
        |ACTIONS_CACHE_URL=https://cache.example.com/abcdefgh/|SWIFT_PATH=/usr/share/swift/usr/bin
        |POWERSHELL_DISTRIBUTION_CHANNEL=GitHub-Actions-ubuntu24|DOTNET_SKIP_FIRST_TIME_EXPERIENCE=1""",
    "gitlab": """CI_JOB_ID=1234567890|CI_COMMIT_SHA=f62ec4d27ca3c57169a8f108fb46574cfa785098|CI_PIPELINE_SOURCE=push
        |CI_COMMIT_REF_SLUG=main|CI_PROJECT_PATH=group/project|CI_REGISTRY=registry.example.com
        |CI_REGISTRY_USER=gitlab-ci-token|CI_SERVER_TLS_CA_FILE=/builds/group/project.tmp/CI_SERVER_TLS_CA_FILE
        |CI_RUNNER_SHORT_TOKEN=abcdefgh|GITLAB_USER_EMAIL=dev@example.com|CI_DEBUG_TRACE=false
        |CI_RUNNER_EXECUTABLE_ARCH=linux/amd64|FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL=false""",
    "desktop": """SSH_AUTH_SOCK=/run/user/1000/keyring/ssh|SSH_AGENT_PID=123456789
        |GPG_AGENT_INFO=/run/user/1000/gnupg:0:1
        |XAUTHORITY=/run/user/1000/.mutter-Xwaylandauth.1F3XA2|GNOME_KEYRING_CONTROL=/run/user/1000/keyring
        |SESSION_MANAGER=local/host:@/tmp/.ICE-unix/2861,unix/host:/tmp/.ICE-unix/2861|DESKTOP_SESSION=ubuntu
        |DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus|INVOCATION_ID=141d39f1a8ed478e8d9c25025ee1837f
        |LS_COLORS=rs=0:di=01;34:ln=01;36:*.tar=01;31:*.tgz=01;31|KEYTIMEOUT=1
        |GIT_ASKPASS=/usr/share/code/resources/app/extensions/git/dist/askpass.sh|SUDO_ASKPASS=/usr/bin/ssh-askpass
        |VSCODE_GIT_ASKPASS_NODE=/usr/share/code/code|VSCODE_NLS_CONFIG={"locale":"en-us","availableLanguages":{}}
        |NO_AT_BRIDGE=1|CONDA_PROMPT_MODIFIER=(project)|TOKENIZERS_PARALLELISM=false|PASSWORD_STORE_DIR=/home/dev/.pass
        |PS1=[\\u@\\h \\W]\\$|HISTIGNORE=ls:cd:pwd""",
    "mac": """SSH_AUTH_SOCK=/private/tmp/com.apple.launchd.x8Jd93kdQz/Listeners
        |TERM_SESSION_ID=6CEB2261-94A5-4C34-8ADD-BF4FF112D029
        |TMPDIR=/var/folders/3r/_pbvf6d522957yhk2jxc75440000gn/T/|__CF_USER_TEXT_ENCODING=0x1F5:0x0:0x0
        |__CFBundleIdentifier=com.apple.Terminal|HOMEBREW_PREFIX=/opt/homebrew|SECURITYSESSIONID=186b4
        |ITERM_SESSION_ID=w0t0p0:012F80B4-C00A-4328-B20D-4E865AC5599C""",
    "images": """GPG_KEY=FINGERPRINT|PYTHON_VERSION=3.13.1|GOSU_VERSION=1.17
        |PYTHON_SHA256=9cf9427bee9e2242e3877dd0f6b641c1853ca461f39d6503ce260a59c80bf0d9|POSTGRES_PASSWORD=postgres
        |PG_MAJOR=17|PGDATA=/var/lib/postgresql/data|MINIO_ROOT_PASSWORD=minioadmin|MYSQL_MAJOR=8.0
        |MINIO_ROOT_PASSWORD_FILE=secret_key|MINIO_ACCESS_KEY_FILE=access_key
        |RABBITMQ_PGP_KEY_ID=0x0A9AF2115F4687BD29803A206B73
        |NGINX_VERSION=1.27.3|DYNPKG_RELEASE=1~bookworm|KEYCLOAK_ADMIN=keycloak-admin|ELASTIC_PASSWORD=changeme
        |KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443|TOKEN_SERVICE_SERVICE_HOST=10.96.112.40
        |JAVA_OPTS=-Xmx512m -Dfile.x=y
        |GF_SECURITY_SECRET_KEY__FILE=/run/secrets/grafana|AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v2/credentials/3beeb8a3
        |AWS_WEB_IDENTITY_TOKEN_FILE=/var/run/secrets/eks.amazonaws.com/serviceaccount/token|LANG=C.UTF-8""".replace(
        "FINGERPRINT", "0A" * 20
    ),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_nothing_is_taken_for_a_secret_in_the_environment_of_a_machine_that_has_none(machine: str) -> None:
    environ = dict(line.strip().split("=", 1) for line in MACHINES[machine].split("|"))
    assert known(**environ) == set()


# --- OpenCode's configuration


@pytest.mark.parametrize(
    "document",
    [
        {"provider": {"openai": {"options": {"apiKey": VALUE}}}},
        {"provider": {"openai": {"options": {"headers": {"Authorization": f"Bearer {VALUE}"}}}}},
        {"provider": {"x": {"options": {"headers": {"X-Org": VALUE}}}}},
        {"provider": {"x": {"models": {"m": {"headers": {"cookie": VALUE}}}}}},
        {"provider": {"x": {"options": {"baseURL": f"https://app:{VALUE}@llm.example.com/v1"}}}},
        {"mcp": {"x": {"type": "local", "environment": {"ANYTHING": VALUE, "LOG_LEVEL": "verbose"}}}},
        {"mcp": {"x": {"type": "local", "command": ["npx", "server", "--api-key", VALUE]}}},
        {"mcp": {"x": {"type": "local", "command": ["docker", "run", "-e", f"API_TOKEN={VALUE}", "image"]}}},
        {"mcp": {"x": {"type": "local", "command": ["server", f"--token={VALUE}"]}}},
        {"mcp": {"x": {"type": "remote", "url": f"https://mcp.example.com/?exampleApiKey={VALUE}"}}},
        {"mcp": {"x": {"type": "remote", "headers": {"Authorization": VALUE}}}},
        {"mcp": {"x": {"type": "remote", "oauth": {"clientId": "client-1", "clientSecret": VALUE}}}},
        {"mcp": {"x": {"headers": {"Authorization": "Basic " + b64encode(f"app:{VALUE}".encode()).decode()}}}},
        {"mcp": {"x": {"headers": {"Cookie": "a=1, Basic " + b64encode(f"app:{VALUE}".encode()).decode() + ", b=2"}}}},
        {"mcp": {"x": {"headers": {"X-Api-Key": f"Bearer {VALUE}"}}}},
        {"mcp": {"x": {"headers": {"X-Api-Key": f"Bearer {OTHER}, Bearer {VALUE}"}}}},
        {"mcp": {"x": {"headers": {"Authorization": f"token {OTHER}, {VALUE}"}}}},
        {"mcp": {"x": {"headers": {"Authorization": f"token {VALUE}, {OTHER}"}}}},
        {"mcp": {"x": {"headers": {"Authorization": f"SSWS {VALUE}"}}}},
        {"mcp": {"x": {"headers": {"Authorization": f'Digest username="dev", response="{VALUE}"'}}}},
        {"mcp": {"x": {"headers": {"Cookie": f"theme=dark; session={VALUE}; other={OTHER}"}}}},
        {"mcp": {"x": {"headers": {"X-Any": f"Own-Scheme {VALUE}"}}}},
        {"mcp": {"x": {"headers": {"X-Any": f"{OTHER};{VALUE}"}}}},
        {"mcp": {"x": {"headers": {"X-Any": json.dumps([OTHER, VALUE])}}}},
        {"mcp": {"x": {"command": ["npx", "mcp-remote", "--header", f"Authorization: Bearer {VALUE}"]}}},
        {"mcp": {"x": {"command": ["npx", "mcp-remote", "--header", f"Authorization:Bearer {VALUE}"]}}},
        {"mcp": {"x": {"command": ["npx", "mcp-remote", f"--header=X-Api-Key:{VALUE}"]}}},
        {"mcp": {"x": {"command": ["sh", "-c", f"server -H 'X-Org: example-1' -H 'X-Api-Key: {VALUE}'"]}}},
        {"agent": {"x": {"prompt": f"Say what password = {VALUE} opens."}}},
        {"plugin": [["another-plugin", {"token": VALUE}]]},
        {"lsp": {"x": {"env": {"ANYTHING": VALUE}}}},
    ],
    ids=lambda document: json.dumps(document).replace(VALUE, "…")[:60],
)
def test_a_secret_anywhere_in_a_configuration_is_known(document: dict[str, Any]) -> None:
    assert VALUE in set(of_configuration(document))


def test_the_rest_of_a_configuration_is_not() -> None:
    headers = {"Content-Type": "application/json", "anthropic-version": "2023-06-01", "X-Project": "my-project-1"}
    environment = {"AWS_REGION": "eu-central-1", "NODE_ENV": "production", "HOME": "/home/dev", "DEBUG": "true"}
    document: dict[str, Any] = {
        "$schema": "https://opencode.ai/config.json",
        "model": "anthropic/claude-sonnet-4-5",
        "provider": {
            "x": {"options": {"baseURL": "http://127.0.0.1:11434/v1", "apiKey": "ollama", "headers": headers}}
        },
        "mcp": {"x": {"command": ["npx", "-y", "@example/server"], "environment": environment, "timeout": 10_000_000}},
        "keybinds": {"session_new": "ctrl+n", "leader": "ctrl+x"},
        "agent": {"review": {"prompt": "Look for tokens = secrets that are committed.", "model": "openai/gpt-4o-mini"}},
        "mode": {"plan": {"prompt": "Say password = swordfish, password: geheimnis\ntoken: swordfish is no password."}},
        "command": {"x": {"template": "password=swordfish", "description": "Sets password: swordfish"}},
        "permission": {"bash": {"git push": "ask"}},
    }
    assert set(of_configuration(document)) == set()


def test_a_configuration_that_is_nested_without_end_is_read_as_far_as_it_goes() -> None:
    document: dict[str, Any] = {"apiKey": VALUE}
    for _ in range(200):
        document = {"x": document, "token": OTHER}
    assert set(of_configuration(document)) == {OTHER}


# --- what OpenCode logs in with

AUTH = {
    "anthropic": {"type": "oauth-login", "access": "access-12345", "refresh": "refresh-12345", "expires": 179534377},
    "openai": {"type": "api-key-login", "key": "key-1234567"},
    "https://opencode.example.com": {"type": "wellknown", "key": "COMPANY_TOKEN", "token": "token-12345"},
    "copilot": {"type": "oauth-login", "enterpriseUrl": "git.example.com", "other": ["https://example.com", "x" * 8]},
    "cloudflare": {"type": "api", "key": "key-of-gateway", "metadata": {"gatewayId": "my-gateway", "apiToken": VALUE}},
}
AUTH_VALUES = {
    *("access-12345", "refresh-12345", "key-1234567", "COMPANY_TOKEN", "token-12345", "x" * 8, "key-of-gateway", VALUE)
}


def test_what_opencode_logs_in_with_is_known() -> None:
    assert set(of_logins(json.dumps(AUTH))) == AUTH_VALUES


def test_what_it_gives_mcp_servers_is_known() -> None:
    tokens = {"accessToken": VALUE, "refreshToken": OTHER, "expiresAt": 1795343770.5, "scope": "mcp:read mcp:write"}
    client = {"clientId": "client-12345", "clientSecret": "of-the-client", "clientSecretExpiresAt": 0}
    entry = {
        "tokens": tokens,
        "clientInfo": client,
        "codeVerifier": "verifier-12345",
        "serverUrl": "https://example.com",
    }
    expected = {VALUE, OTHER, "client-12345", "of-the-client", "verifier-12345"}
    assert set(of_logins(json.dumps({"server": entry}))) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"\xef\xbb\xbf",
        b"\0" * 99,
        b'"a string alone"'[:3],
        b"[" * 100_000,
        b'{"a": {"b": ' * 400,
        b"12345678",
    ],
    ids=["empty", "cut", "no-utf-8", "null", "mark", "zeros", "half-a-string", "deep", "deep-and-cut", "number"],
)
def test_a_broken_login_file_says_nothing(content: bytes) -> None:
    assert set(of_logins(content)) == set()


TWO = json.dumps({"one": {"type": "oauth", "access": VALUE}, "two": {"type": "api", "key": OTHER}})


@pytest.mark.parametrize(
    "content",
    [
        TWO.encode().replace(b"oauth", b"oa\xffuth"),
        TWO.encode().replace(b"{", b"{\xff", 1),
        b"\xff" + TWO.encode(),
        b"\xef\xbb\xbf" + TWO.encode(),
        TWO.encode("utf-16"),
        TWO.encode("utf-16-le"),
        TWO[:-1].encode("utf-16"),
        TWO.encode("utf-16") + b"\0",
        b"\0" * 4096 + TWO.encode(),
        TWO.encode() + b"\0" * 4096,
        TWO.encode()[:-1],
        TWO.encode()[:-3],
        TWO.encode() + TWO.encode(),
        b'{"a": tru, ' + TWO.encode()[1:],
        b'{"a: 1, ' + TWO.encode()[1:],
        b'{"a": "\\x", ' + TWO.encode()[1:],
        b'{"a": "\n", ' + TWO.encode()[1:],
        b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"," + TWO.encode()[1:],
        TWO.encode().replace(b'"two"', b'"one"'),
        TWO.encode().replace(b":", b""),
        TWO.encode().replace(b'"', b"'"),
        json.dumps({"one": f"{VALUE},{OTHER}"}).encode(),
        json.dumps({"one": {"key": TWO}}).encode(),
        json.dumps({"one": f"{VALUE}\xff{OTHER}"}, ensure_ascii=False).encode("latin-1"),
    ],
    ids=[
        *("odd-byte", "odd-byte-outside", "odd-byte-first", "mark", "utf-16", "utf-16-le", "cut-utf-16", "odd-utf-16"),
        *("zeros-before", "zeros-behind", "cut", "cut-in-a-value", "twice", "no-word", "no-quote", "no-escape", "line"),
        *("deep", "one-name-twice", "no-colons", "other-quotes", "several", "json-in-json", "odd-byte-between"),
    ],
)
def test_what_is_wrong_at_one_place_of_a_login_file_hides_nothing_else(content: bytes) -> None:
    assert {VALUE, OTHER} <= set(of_logins(content))


def test_the_words_and_addresses_of_a_broken_login_file_are_not_known() -> None:
    public = {"type": "api-key-login", "serverUrl": "https://example.com/login", "scope": "mcp:read mcp:write"}
    assert set(of_logins(json.dumps({"server": public, "key": VALUE})[:-1])) == {VALUE}


def test_a_token_is_told_apart_from_its_escapes_in_a_broken_file() -> None:
    assert 'slash/and"quote' in set(of_logins(b'{"a": "slash\\/and\\"quote", '))
