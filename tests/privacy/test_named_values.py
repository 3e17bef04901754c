"""Values that are known by their names, in every shape in which a name and a value stand."""

from __future__ import annotations

import json
import re
import string
from base64 import b64encode
from collections.abc import Callable
from random import Random

import pytest

from app.privacy.named_values import named_values
from app.privacy.redact import REDACTED, Redaction
from app.privacy.secret_names import Kind, kind_of
from app.transcript.model import Json
from tests.support.fake_secrets import noise

RULES_ONLY = Redaction.compile([])
WORD = "sword" + "fish"
STRONG = "hunt" + "er2-Xy"
RANDOM = noise("named", string.ascii_letters + string.digits, 24)

# `@` stands for the value. Under these names and in these places it is one, whatever it looks like.
ANY_VALUE = [
    '{"name": "DB_PASSWORD", "value": "@"}',
    '{"name":"DB_PASSWORD","value":"@"}',
    '{"value": "@", "name": "DB_PASSWORD"}',
    '{"key": "API_TOKEN", "type": "string", "value": "@"}',
    '{"Name": "ApiKey", "Value": "@"}',
    "- name: DB_PASSWORD\n  value: @",
    '- name: DB_PASSWORD\n  value: "@"',
    "  - value: @\n    name: DB_PASSWORD",
    "12: - name: DB_PASSWORD\n13:   value: @",
    '<property name="password" value="@"/>',
    '<add key="DbPassword" value="@" />',
    '<add value="@" key="DbPassword" />',
    '<property name="password">@</property>',
    "<key>Password</key>\n<string>@</string>",
    "<password>@</password>",
    '<db:password type="plain">@</db:password>',
    "<password>\n  @\n</password>",
    "<apiToken><![CDATA[@]]></apiToken>",
    '["mysql", "--password", "@", "-h", "db"]',
    'args: ["--user", "x", "--db-password", "@"]',
    "'--api-key', '@'",
    "deploy --password @ --host db",
    "keytool -storepass @ -alias x",
    "Connect-Thing -Password @ -Force",
    "openssl rsa -passin pass:@ -in key.pem",
    '"passwords": ["@", "other1"]',
    'password: ["@"]',
    '"credentials": {"username": "app", "password": "@"}',
    '"secret": {"value": "@"}',
    "passwords:\n  - @",
    "curl -u app:@ https://example.com",
    "curl -sS --user app:@ https://example.com",
    'curl --user "app:@" https://example.com',
    "curl -uapp:@ https://example.com",
    "curl \\\n  -H 'Accept: */*' \\\n  -u app:@ \\\n  https://example.com",
    '["curl", "-u", "app:@", "https://example.com"]',
    "mysql -u root -p@ db",
    "mysqldump -uroot -p'@' db",
    '["mysql", "-uroot", "-p@"]',
    "sshpass -p @ ssh db",
    "docker login -u me -p @ registry.example.com",
    "redis-cli -h cache -a @ ping",
    "machine api.example.com login me password @",
    "machine api.example.com\n  login me\n  password @",
    "default login me password @",
    "db.example.com:5432:app:me:@",
    "*:*:*:postgres:@",
    '{"content": "localhost:5432:a:b:c\\ndb.example.com:5432:app:me:@\\n"}',
    '{"content": "# hosts\\ndb.example.com:5432:app:me:@"}',
    "CREATE USER x WITH PASSWORD '@';",
    "ALTER ROLE x ENCRYPTED PASSWORD '@'",
    "CREATE USER x IDENTIFIED BY '@';",
    "CREATE USER x IDENTIFIED BY @;",
    "alter user x identified with caching_sha2_password by '@'",
    "SET PASSWORD FOR x = PASSWORD('@')",
    "password: |\n  @\nport: 1",
    "  password: >-\n    @\n  port: 1",
    "12: password: |\n13:   @\n14: port: 1",
    "password:\n    @\nport: 1",
    'password =\n    "@"',
    '"password":\n    "@"',
    "pass: @",
    '"dbPass": "@"',
    "SMTP_PASS=@",
    "pw: @",
    '"pw": "@"',
    "Passwort: @",
    "contraseña: @",
    'contraseña = "@"',
    "senha=@",
    "password\uff1a@",
    "密码\uff1a@",
    "пароль: @",
    '"credentials": "app:@"',
    'connectionString="Server=db;User Id=sa;Password=@;"',
    "SSH_PASSPHRASE=@",
    "WATSONX_AI_APIKEY=@",
    'acme_token: "@"',
    "acme_secret = '@'",
    "ACME_API_KEY=@",
    "# Encrypted with the passphrase '@'",
    "password = @",
    "password_1 = '@'",
    '{"name": "Authorization", "value": "Bearer @"}',
    '{"name":"authorization","value":"@"}',
    '{"value": "Basic @", "name": "Proxy-Authorization"}',
    '{"name": "Cookie", "value": "theme=dark; sid=@"}',
    "httpHeaders:\n- name: Authorization\n  value: Bearer @\n",
    "- name: authorization\n  value: @",
    '<header name="Authorization" value="Basic @"/>',
    '{"name": "Set-Cookie", "value": "sid=@; Path=/"}',
    '{"name": "X-Api-Key", "value": "@"}',
    '{"cookies": [{"name": "theme", "value": "dark"}, {"name": "sid", "value": "@", "path": "/"}]}',
    '"cookies": [\n  {\n    "name": "sid",\n    "value": "@"\n  }\n],',
    '{"output": "password: @"}',
    '{"output": "user: app\\npassword: @", "exit": 0}',
    "{'output': 'DB_PASSWORD: @'}",
]


@pytest.mark.parametrize("value", [WORD, STRONG, RANDOM])
@pytest.mark.parametrize("shape", ANY_VALUE)
def test_a_value_goes_in_every_shape(shape: str, value: str) -> None:
    shown = RULES_ONLY.text(f"first\n{shape.replace('@', value)}\nlast: 1")
    assert value not in shown
    assert REDACTED in shown


# Names that may be of something else: there the value must look like a secret.
LIKELY_VALUE = [
    "GITHUB_PAT=@",
    "CONTENTFUL_READ_TOKEN=@",
    "CLARIFAI_PAT=@",
    "MY_PASSPHRASE_PROD=@",
    "APIKEY_PROD=@",
    "ACME_CREDENTIAL_OLD=@",
    "STRIPE_KEY_LIVE=@",
    "TOKEN_GITHUB=@",
    "ALGOLIA_KEY=@",
    "KEY=@",
    '"github_pat": "@"',
    "credentials: @",
    'connectionString: "@"',
    "SERVICE_DSN=https://@[at]o1.example.com/1",
]


@pytest.mark.parametrize("shape", LIKELY_VALUE)
def test_a_value_that_looks_like_one_goes_under_a_name_of_many_things(shape: str) -> None:
    assert RANDOM not in RULES_ONLY.text(f"first\n{shape.replace('@', RANDOM).replace('[at]', '@')}\nlast: 1")


LOGINS = ["app:" + WORD, "app:" + STRONG, f"me@example.com:{RANDOM}", "user:pass"]
LOGIN_SHAPES = [
    '{"auths": {"https://index.example.com/v1/": {"auth": "@"}}}',
    '"auth": "@"',
    r'{"out": "{\"auth\": \"@\"}"}',
    "//registry.example.com/:_auth=@",
    "_auth=@",
]


@pytest.mark.parametrize("login", LOGINS)
@pytest.mark.parametrize("shape", LOGIN_SHAPES)
def test_a_user_with_a_password_in_base64_goes(shape: str, login: str) -> None:
    packed = b64encode(login.encode()).decode()
    assert packed not in RULES_ONLY.text(shape.replace("@", packed))


def test_a_user_with_a_password_in_base64_goes_in_json() -> None:
    packed = b64encode(f"app:{WORD}".encode()).decode()
    told: Json = {"auths": {"https://index.example.com/v1/": {"auth": packed}}}
    assert RULES_ONLY.json(told) == {"auths": {"https://index.example.com/v1/": {"auth": REDACTED}}}


@pytest.mark.parametrize("shape", ["ALGOLIA_KEY=@", "KEY=@", 'export SERVICE_KEY="@"', "APP_KEY='@'"])
@pytest.mark.parametrize("alphabet", [string.ascii_letters, string.ascii_uppercase, string.ascii_lowercase])
def test_a_key_in_a_file_of_settings_needs_no_digit(shape: str, alphabet: str) -> None:
    key = "".join(Random(shape + alphabet).choice(alphabet) for _ in range(32))  # noqa: S311 - the same each time
    assert key not in RULES_ONLY.text(f"first=1\n{shape.replace('@', key)}\nlast=1")


@pytest.mark.parametrize("shape", ['algolia_key: "@"', '"auth": "@"', 'setItem("token", "@")', '"tokens": ["@"]'])
def test_a_random_value_goes_where_only_that_tells_it(shape: str) -> None:
    assert RANDOM not in RULES_ONLY.text(shape.replace("@", RANDOM))
    assert RULES_ONLY.text(shape.replace("@", WORD)) == shape.replace("@", WORD)


@pytest.mark.parametrize(
    ("alphabet", "length"),
    [
        pytest.param(string.ascii_lowercase, 24, id="lower case"),
        pytest.param(string.ascii_uppercase, 24, id="upper case"),
        pytest.param(string.digits, 20, id="digits"),
        pytest.param("0123456789abcdef", 32, id="hex"),
        pytest.param(string.ascii_letters + string.digits + "+/", 44, id="base64"),
        pytest.param(string.ascii_letters + string.digits + "-_", 43, id="URL-safe"),
        pytest.param(string.ascii_letters + string.digits + "=_.~-", 40, id="signs"),
    ],
)
@pytest.mark.parametrize("shape", ["ACME_API_KEY=@", 'acme_token: "@"', "acme_secret = '@'", '{"acmeApiKey": "@"}'])
def test_a_key_of_any_alphabet_goes_under_its_vendors_name(shape: str, alphabet: str, length: int) -> None:
    key = "".join(letter for letter in noise(shape + alphabet, alphabet, length))
    assert key not in RULES_ONLY.text(f"first\n{shape.replace('@', key)}\nlast")


LEFT = [
    '"input_token": "nextToken",',
    'next_token = "abcdef0123456789abcd"',
    '"GrantToken": "The grant token of the request.",',
    "raise TypeError(\"Unexpected token 'x'\")",
    '"pbkdf2-password": "1.2.1"',
    "credentials: 'include',",
    'credentials="same-origin"',
    "GOOGLE_APPLICATION_CREDENTIALS=/home/dev/key.json",
    'secrets: ["DB_PASSWORD", "API_TOKEN"]',
    '{"name": "password", "type": "string", "description": "The password"}',
    "- name: password\n  in: query\n  required: true",
    '- name: DB_PASSWORD\n  valueFrom: {secretKeyRef: {name: "db"}}',
    '<input type="password" name="password"/>',
    "<password>${db.password}</password>",
    "<token>string</token>",
    "password:\n  type: string",
    "password:\n",
    "mkdir -p data; mysql -u root -p",
    "curl -u app https://example.com/a:b",
    "objects can be identified by 'key'",
    "use the --password option to set it",
    "user_pass.go:1234: error",
    "arn:aws:secretsmanager:us-west-2:123456789012:secret:Db-a1b2c3",
    "cancelToken: defaultToConfig2,",
    "token:h?n:null,",
    "ER_PASSWORD = 1819;",
    'INVALID = "INVALID_PASSWORD"',
    'f"Bearer {token}"',
    'token = f"{group}@{stream}"',
    "sort(key=lambda x: x.pk1)",
    'cache_key = "0123abcd0123abcd0123abcd"',
    "file_path = data1",
    "pass\n",
    "vcenter_password: @VMWARE_PASSWORD",
    "ssh_private_key=#{ssh_private_key}",
    'api_key="hf_...",',
    'build(token="hf_***")',
    "export OPENAI_API_KEY=sk-...",
    ".. _refresh token: https://docs.example.org/html/rfc6749#section-6",
    '"token": "https://example.com/docs/tokens"',
    'def answer(default_token="Bearer")',
    "app_token: App-level token of the app",
    "@param password: Password/secret this component uses",
    "of={radio:!0,password:!0,image:!0}",
    "a(s),this.pass=!1,this.options=s",
    "Cannot pass 'force=True' and 'local=True'",
    "the --x-password option requires --x-username; --x-password requires --x-username",
    "set by --username and --password options",
    'token = "is not"',
    'AUTH_KEY = "xet-auth"',
    'TYPE_ACCESS_TOKEN = "auth-request-type/at"',
    'NEED_PASS = "331.1"',
    'CI_MUST_PASS = "ci_must_pass"',
    'Oid.CHALLENGE_PASSWORD: "challengePassword"',
    '"ChangePassword": {"operation": "ChangePassword"}',
    "    password = content",
    "cls.set_password = wrapper",
    'options["pass"] = p1',
    "Ed25519PrivateKey = ed25519.Ed25519PrivateKey",
    "KRB5_PASSWORD=str(self._get_config(KRB5_PASSWORD_ENV)),",
    "$token = Get-AzAccessToken @params",
    "dollarToken = +dollarToken;",
    "var replacementToken = /\\$(?:\\{([^}]+)/g",
    'privateKey="server.pem"',
    "passwd:/etc/passwd",
    'secret_key: "Optional[str]" = None',
    "AZURE_TOKEN_CREDENTIALS=WorkloadIdentityCredential",
    'credentials.ISSHPrivateKey: b"publickey"',
    "[2607:f0d0:1002:0051:0000:0000:0000:0004]",
    '"ssl:4321:privateKey={}:certKey={}:dhParameters={}"',
    '"ssl:1234:privateKey=%s:extraCertChain=%s"',
    "'Pod::Simple::EndToken'=> 'cpan',",
    '$is{pass} ? "PASS" : "FAIL"',
    "effective_pass => $test,",
    '{"name": "Authorization", "value": "{{token}}"}',
    '{"name": "Cookie", "description": "The session"}',
    '"cookies": []',
    '"cookies": ["sid", "theme"]',
    '{"message": "password: required"}',
    '"auth": "optional"',
    '"auth": "username"',
    "SORT_KEY=created_at_of_the_record",
    "PUBLIC_KEY=abcdefghijklmnopqrstuvwxyz",
]


@pytest.mark.parametrize("line", LEFT)
def test_what_only_looks_like_a_name_and_its_value_stays(line: str) -> None:
    text = f"first\n{line}\nlast"
    assert RULES_ONLY.text(text) == text


JSON: list[tuple[Json, Json]] = [
    ({"name": "DB_PASSWORD", "value": WORD}, {"name": "DB_PASSWORD", "value": REDACTED}),
    ({"value": WORD, "key": "API_TOKEN"}, {"value": REDACTED, "key": "API_TOKEN"}),
    (["mysql", "--password", WORD], ["mysql", "--password", REDACTED]),
    (["curl", "-u", f"app:{WORD}"], ["curl", "-u", f"app:{REDACTED}"]),
    (["mysql", f"-p{WORD}"], ["mysql", f"-p{REDACTED}"]),
    ({"passwords": ["a", "b"]}, {"passwords": REDACTED}),
    ({"tokens": [RANDOM, "the"]}, {"tokens": [REDACTED, "the"]}),
    ({"credentials": {"user": "x", "pass": "y"}}, {"credentials": {"user": "x", "pass": REDACTED}}),
    ({"pw": "x y", "dbPass": "1", "contraseña": "z"}, {"pw": REDACTED, "dbPass": REDACTED, "contraseña": REDACTED}),
    ({"credentials": f"app:{WORD}"}, {"credentials": REDACTED}),
    ({"name": "Authorization", "value": f"Bearer {WORD}"}, {"name": "Authorization", "value": f"Bearer {REDACTED}"}),
    ({"name": "Cookie", "value": f"sid={WORD}"}, {"name": "Cookie", "value": REDACTED}),
    ({"cookies": [{"name": "sid", "value": WORD}]}, {"cookies": [{"name": "sid", "value": REDACTED}]}),
]


@pytest.mark.parametrize(("told", "shown"), JSON)
def test_json_is_read_as_the_text_that_it_would_be(told: Json, shown: Json) -> None:
    assert RULES_ONLY.json(told) == shown


@pytest.mark.parametrize(
    "told",
    [
        {"name": "token", "description": "what it is for"},
        {"command": "mkdir -p data", "description": "password"},
        ["--password-file", "x.txt"],
        {"tokens": ["the", "cat"]},
        {"credentials": "include"},
        {"name": "MAX_TOKENS", "value": "12"},
    ],
)
def test_json_without_a_secret_stays(told: Json) -> None:
    assert RULES_ONLY.json(told) == told


def test_a_long_string_beside_a_name_goes_whole() -> None:
    value = "x y" * 2_000
    assert RULES_ONLY.json({"name": "DB_PASSWORD", "value": value}) == {"name": "DB_PASSWORD", "value": REDACTED}


def test_only_names_with_a_head_that_was_seen_are_looked_at() -> None:
    data = f'password: "{WORD}"\nother\npassword: "{STRONG}"\n'.encode()
    spans = list(named_values(data, [data.rindex(b"password")]))
    assert [data[slice(*span)].decode() for span in spans] == [STRONG]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("DB_PASSWORD2", Kind.PASSWORD),
        ("self.userPwd", Kind.PASSWORD),
        ("clientSecret", Kind.SECRET),
        ("X-Api-Key", Kind.SECRET),
        ("DATABASE_DSN", Kind.CREDENTIALS),
        ("STRIPE_KEY_LIVE", Kind.KEY),
        ("nextToken", None),
        ("bypass", None),
        ("secretary", None),
        ("public_key", None),
        ("key_id", None),
    ],
)
def test_a_name_is_judged_by_its_words(name: str, kind: Kind | None) -> None:
    assert kind_of(name.encode()) is kind


SLOW: dict[str, Callable[[int], str]] = {
    "options": lambda n: "--password " * n,
    "fields": lambda n: '"name": "password", ' * n,
    "elements": lambda n: "<password>" * n + "</password>" * n,
    "closing tags": lambda n: "</password>" * n,
    "lists in lists": lambda n: 'passwords: ["' * n,
    "objects": lambda n: '"secret": {' * n,
    "block scalars": lambda n: "".join(f"{' ' * (line % 50)}password: |\n" for line in range(n)),
    "commands": lambda n: "curl mysql " * n,
    "ports": lambda n: ":5432:a:b" * n,
    "netrc": lambda n: "machine password " * n,
    "identified": lambda n: "identified by " * n,
    "one name": lambda n: "token" * n,
    "signs": lambda n: "key=" * n,
    "quotes of one value": lambda n: "password='password=\"password=`" * n,
    "bare values": lambda n: "token=a1," * n,
    "types": lambda n: "token: a" * n,
    "cookies": lambda n: '"cookies": [{' * n,
    "cookies without a list": lambda n: '"name": "cookie", ' * n,
    "ends of strings": lambda n: '"a": "password: b" ' * n,
    "foreign names": lambda n: "密码" * n,
}


@pytest.mark.parametrize("name", SLOW)
def test_a_text_that_is_made_to_be_slow_is_read_through(name: str) -> None:
    # Where the time grew with the square of the length, this would take hours.
    text = SLOW[name](4_000)
    assert len(list(named_values(text.encode()))) <= len(re.findall(r"\w+", text)) + 1


@pytest.mark.parametrize(
    "text",
    [
        f"curl --api-key {STRONG} -u app:{WORD} http://x",
        f"curl -H 'X-Api-Key: {STRONG}' -u app:{WORD} http://x",
        f"mysql --password {STRONG} -h db -p{WORD}",
        f'{{"name": "DB_PASSWORD", "token": "{STRONG}", "value": "{WORD}"}}',
        f"machine x login y account token={STRONG} password {WORD}",
    ],
)
def test_a_value_between_a_name_and_its_value_goes_as_well(text: str) -> None:
    shown = RULES_ONLY.text(text)
    assert STRONG not in shown
    assert WORD not in shown


def test_names_are_found_inside_json_in_a_text() -> None:
    told = json.dumps(json.dumps({"name": "DB_PASSWORD", "value": WORD}))
    assert WORD not in RULES_ONLY.text(told)
