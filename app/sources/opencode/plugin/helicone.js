// opencode-helicone plugin, written by `opencode-helicone install-plugin`; the next install replaces this file.
const INSTALLED = {"command": ["opencode-helicone", "hook"], "flavour": "object", "code": ""}
/* Tells a resident Python process, the hook, which session changed and why: a short JSON line, a notice, on its stdin.
   The hook reads the session from OpenCode's store and acknowledges lines by number on its stdout. A notice is written
   in the tick of its event: OpenCode may end in the next. The newest of each session is kept and said again to the next
   hook, which so learns what the last one left undone and which sessions are ours. Nothing here prints, throws, blocks,
   reads a session or decides from options: each line carries them, and the hook knows what they mean. */
import { spawn } from "node:child_process"
import path from "node:path"

const IN_FLIGHT_MAX = 64 // lines that are not acknowledged yet: so many fit in the pipe, however slow the hook is
const SESSIONS_MAX = 1_000 // the newest are kept
const DISPOSE_MS_MAX = 2_000
const MOMENT_MS = 100 // until a broken pipe is explained by an exit code, and before events are subscribed to again
const NOTHING_WANTED = 40 // the hook's exit code when the settings want nothing from its folders; as in app/capture/daemon.py
const RESTART_PAUSES_MS = [1_000, 10_000, 60_000] // after the first, second, third death in a row; then one an hour
const HOUR_MS = 3_600_000
const STEADY_MS = 600_000 // a hook that lived this long ends a row of deaths

// Of several copies in a process (the user's, a project's, one from before an upgrade) the one loaded last is in charge.
const REGISTRY = Symbol.for("opencode-helicone/2")
const current = () => globalThis[REGISTRY]
const places = current()?.places ?? new Map() // directory → {directory, loads, options, isUnwanted, seen}
const sessions = current()?.sessions ?? new Map() // id → {id, place, why, n, said, state, …}, the latest at the end
const due = new Set() // sessions whose newest notice is not written yet
const NEW_LIFE = { child: null, first: null, n: 0, acked: 0, isSilent: false }
const hook = { ...NEW_LIFE, deaths: 0, startedMs: 0, notBeforeMs: 0, reportedMs: -HOUR_MS }

/** Starts a process that outlives us; null when it cannot, or when the last one died too recently. Bun's own flush()
    gives the bytes to the system before it returns, node's spawn in Bun does not. OpenCode's desktop app is Node. */
function launch([name, ...args]) {
  if (performance.now() < hook.notBeforeMs) return null
  // Neither the search for the program nor its Python may meet files of the project.
  const env = Object.fromEntries(Object.entries(process.env).filter(([variable]) => !/^(PYTHON|__PYV)/.test(variable)))
  const PATH = (env.PATH ?? "").split(path.delimiter).filter((folder) => path.isAbsolute(folder)).join(path.delimiter)
  const options = { cwd: "/", env: { ...env, PATH, PWD: "/" }, detached: true, stdio: ["pipe", "pipe", "ignore"] }
  const exited = (code, signal) => lost(child, `hook ended: ${signal ?? `exit code ${code}`}`, code)
  const failed = (error) => lost(child, `hook did not start: ${error.code ?? error.name}`)
  let child = null
  try {
    if (globalThis.Bun) child = Bun.spawn([name, ...args], { ...options, onExit: (_, ...how) => exited(...how) })
    else child = spawn(name, args, options).on("error", failed).on("exit", exited)
    child.stdin.on?.("error", () => broken(child))
    for (const one of [child, child.stdout]) one.unref?.()
    hook.startedMs = performance.now()
    listen(child).catch(() => {})
  } catch (error) {
    failed(error)
  }
  return child
}

/** Takes in what the hook acknowledges, for as long as it lives. */
async function listen(child, text = "") {
  for await (const chunk of child.stdout) {
    text = text.slice(-99) + Buffer.from(chunk).toString("latin1")
    const acked = Number([...text.matchAll(/"ack": ?(\d+)\}\n/g)].at(-1)?.[1] ?? 0)
    if (hook.child !== child || acked <= hook.acked) continue
    Object.assign(hook, { acked, isSilent: false })
    for (const session of sessions.values()) if (session.isLast && session.n > 0 && session.n <= acked) forget(session)
    pump()
    if (isHeard()) hook.endFormer = hook.endFormer?.() // before, it would take what goes on in our sessions for cut off
  }
}
/** The hook does not read any more. If it has ended, the reason is on its way. */
const broken = (child) => void setTimeout(() => lost(child, "hook closed its input"), MOMENT_MS).unref()

/** The child is of no use any more (died, never started, closed its input). Plans the next start. */
function lost(child, reason, code) {
  if (hook.child !== child) return // already told
  const place = hook.first ?? [...places.values()].at(-1)
  if (child && performance.now() - hook.startedMs > STEADY_MS) hook.deaths = 0
  place.isUnwanted = code === NOTHING_WANTED && hook.first !== null // only its line was surely read: others ask anew
  const pauseMs = place.isUnwanted ? 0 : (RESTART_PAUSES_MS[hook.deaths++] ?? HOUR_MS)
  if (!place.isUnwanted) report(place, reason)
  Object.assign(hook, NEW_LIFE, { notBeforeMs: performance.now() + pauseMs })
  setTimeout(pump, pauseMs + 10).unref()
  sayAll()
}

/** One line in OpenCode's log, at most one an hour, and by the next hook, if there is one, in plugin.log. */
function report(place, reason) {
  if (performance.now() - hook.reportedMs < HOUR_MS) return
  hook.reportedMs = performance.now()
  due.add(Object.assign(sessionOf(place, ""), { why: "trouble", reason, isLast: true }))
  const message = `${reason}; command ${JSON.stringify(INSTALLED.command)}`
  // Asked by a directory without an instance, OpenCode would make one to answer.
  const { client } = [place, ...places.values()].flatMap(({ loads }) => [...loads]).find((load) => load.client) ?? {}
  client?.app.log({ body: { service: "opencode-helicone", level: "error", message } }).catch(() => {})
}

/** Writes what is due, as far as the hook keeps up. */
function pump() {
  for (const session of due) {
    const { id, place, why, reason, n, said } = session
    if (place.isUnwanted && due.delete(session)) continue
    if (why === said && n > hook.acked && why !== "idle") continue // the same is in flight
    const child = hook.n - hook.acked < IN_FLIGHT_MAX && (hook.child ??= launch(INSTALLED.command))
    if (!child) break
    due.delete(session)
    hook.first ??= place
    Object.assign(session, { n: ++hook.n, said: why })
    const told = reason ? { type: "trouble", session: id, reason } : { type: "notice", session: id, why }
    const line = { v: 2, n: hook.n, ...told, directory: place.directory, options: place.options }
    const write = async () => Promise.all([child.stdin.write(JSON.stringify(line) + "\n"), child.stdin.flush?.()])
    write().catch(() => broken(child))
  }
}

function sayAll() {
  for (const session of [...sessions.values()].reverse()) if (session.why) due.add(Object.assign(session, { n: 0 }))
  pump()
}

const isHeard = () => hook.n === hook.acked && !due.size
const forget = (session) => void (sessions.delete(session.id), due.delete(session))
function sessionOf(place, id) {
  const session = sessions.get(id) ?? { id, why: null, n: 0 }
  sessions.delete(id)
  sessions.set(id, Object.assign(session, { place }))
  if (sessions.size > SESSIONS_MAX) forget(sessions.values().next().value)
  return session
}

/** Why a session's own facts are news; a new name can wait until the work is done. */
function changeOf(session, { info }) {
  const { facts, revert } = session
  Object.assign(session, { facts: `${info?.title} ${info?.time?.archived}`, revert: JSON.stringify(info?.revert) })
  if (session.revert !== revert) return "reverted"
  return session.facts !== facts && session.state !== "busy" ? "renamed" : null
}
const late = ({ state }, { part }) => (state === "idle" && !/pending|running/.test(part?.state?.status) ? "late" : null)

/** The events that tell something: why, or how to know. */
const WHY = {
  __proto__: null, missed: "late", // ours
  "session.created": (session, told) => void changeOf(session, told), "session.updated": changeOf,
  "session.status": ({ state }, { status }) => (status.type === "idle" || state === "busy" ? null : "busy"),
  "session.idle": "idle", "session.error": "error", "session.deleted": "deleted", "message.part.removed": "reverted",
  "message.updated": late, "message.part.updated": late, "message.removed": "reverted",
  // OpenCode 2, by its public description
  "session.inbox.delivered": "busy", "session.revert.committed": "reverted",
  "session.execution.succeeded": "idle", "session.execution.failed": "idle", "session.execution.interrupted": "idle",
  "session.renamed": "renamed", "session.archived": "renamed", "session.unarchived": "renamed",
}

/** Asynchronous so that it never throws at OpenCode; it waits for nothing. */
async function hear({ directory }, { event }) {
  const [how, place] = [WHY[event.type], places.get(directory)]
  const once = how && (event.id ?? event) // before 1.4 events have no id, and both loads are handed the same object
  if (!how || place.isUnwanted || once === place.seen) return
  place.seen = once
  const told = event.properties ?? event.data // before and from OpenCode 2 on
  const id = told.sessionID ?? told.part?.sessionID ?? told.info?.sessionID ?? told.info?.id
  const session = id && sessionOf(place, id)
  const why = typeof how === "string" ? how : session && how(session, told)
  if (!session || session.isLast || !why) return
  due.add(Object.assign(session, { why, isLast: why === "deleted" }, /busy|idle/.test(why) && { state: why }))
  pump()
}

/** A directory's loads (two copies, an instance made anew) share a place. The newest that has options gives them. */
function join(load, { directory } = load) {
  const place = places.get(directory) ?? { directory, loads: new Set() }
  places.set(directory, Object.assign(place, { isUnwanted: false, options: optionsOf(place.loads.add(load)) }))
}
const optionsOf = (loads) => [...loads].findLast(({ options }) => Object.keys(options).length)?.options ?? {}

/** Waits until everything is acknowledged, or until the hook keeps us waiting: once, until it is heard again. */
async function leave(load) {
  const untilMs = performance.now() + (hook.isSilent ? 0 : DISPOSE_MS_MAX)
  while (hook.child && !isHeard() && performance.now() < untilMs) await new Promise((resolve) => setTimeout(resolve, 10))
  hook.isSilent = hook.child !== null && !isHeard()
  const { loads } = places.get(load.directory)
  if (loads.delete(load) && loads.size) places.get(load.directory).options = optionsOf(loads)
}

/** Says and starts nothing any more. What it returns ends the hook, once the next one knows which sessions are open. */
function stop({ child, endFormer } = hook) {
  Object.assign(hook, NEW_LIFE, { notBeforeMs: Infinity })
  return () => void (async () => endFormer?.() ?? child?.stdin.end())().catch(() => {})
}
if (current()?.code !== INSTALLED.code) {
  hook.endFormer = current()?.stop()
  globalThis[REGISTRY] = { code: INSTALLED.code, places, sessions, join, hear, leave, report, stop }
  sayAll()
}

async function server({ client, directory }, options) {
  const load = { client, directory, options: options ?? {} }
  const failed = ({ name }) => current().report(places.get(directory), `event not understood: ${name}`)
  current().join(load)
  return { event: (input) => void current().hear(load, input).catch(failed), dispose: () => current().leave(load) }
}

/** OpenCode 2 calls this, and not `server`; from 1.17 on 1.x calls both, this one without what is asked for here. */
async function setup(ctx) {
  if (!ctx.app?.version || !ctx.location || !ctx.event?.subscribe) return
  const { event: tell, dispose } = await server(ctx.location, ctx.options)
  const [home, end] = [ctx.location.directory, new AbortController()]
  const missed = (id) => ({ event: { type: "missed", data: { sessionID: id } } })
  const follow = async () => {
    while (!end.signal.aborted) {
      for (const { id, place } of [...sessions.values()]) if (place.directory === home) tell(missed(id))
      try {
        for await (const event of ctx.event.subscribe({ signal: end.signal })) {
          if (!(event.type in WHY)) continue
          const at = event.location ?? (await ctx.session.get(event.data).catch(() => null))?.location
          if ((at?.directory ?? home) === home) tell({ event }) // whether others' come as well is not settled
        }
      } catch {} // who reads too slowly is cut off
      await new Promise((resolve) => setTimeout(resolve, MOMENT_MS).unref())
    }
  }
  void follow()
  return () => end.abort() ?? dispose()
}

// OpenCode below 1.2.5 ends when the default export is no function, 1.2.5 to 1.3 pass over it, 2 wants an object.
export default Object.assign(INSTALLED.flavour === "function" ? server : {}, { id: "opencode-helicone", server, setup })
