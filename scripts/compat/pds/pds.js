// A PDS and the PLC directory that it needs, on loopback, for the tests beside it.
//
//   node pds.js PLC-PORT PDS-PORT DIR [KEPT-MS]
//
// KEPT-MS is for how long events can be asked for; a day, if it is left out.
//
// What DIR holds is found again by the next start with the same ports: accounts, repos,
// directory and secrets. Once both listen, one line of JSON on stdout says where, and the
// password of the admin. SIGTERM or the end of stdin ends it. It connects to nothing but
// itself: no crawlers, no appview, no email.
'use strict'
const crypto = require('node:crypto')
const fs = require('node:fs')
const path = require('node:path')
const { PDS, envToCfg, envToSecrets } = require('@atproto/pds')
const { Database, PlcServer } = require('@did-plc/server')

// onLoopback makes a server that would listen on every address listen on one.
function onLoopback(server) {
  const listen = server.app.listen.bind(server.app)
  server.app.listen = (port) => listen(port, '127.0.0.1')
  return server
}

// The directory is in memory; its operations are kept in a file and applied again.
async function startDirectory(port, file) {
  const db = Database.mock()
  const apply = db.validateAndAddOp.bind(db)
  if (fs.existsSync(file)) {
    for (const line of fs.readFileSync(file, 'utf8').split('\n').filter(Boolean)) {
      await apply(...JSON.parse(line))
    }
  }
  db.validateAndAddOp = async (did, operation) => {
    await apply(did, operation)
    fs.appendFileSync(file, JSON.stringify([did, operation]) + '\n')
  }
  const server = onLoopback(PlcServer.create({ db, port }))
  await server.start()
  return server
}

function secretsOf(file) {
  if (!fs.existsSync(file)) {
    const secret = () => crypto.randomBytes(32).toString('hex')
    fs.writeFileSync(file, JSON.stringify({
      dpopSecret: secret(),
      jwtSecret: secret(),
      adminPassword: secret(),
      plcRotationKeyK256PrivateKeyHex: secret(),
    }))
  }
  return JSON.parse(fs.readFileSync(file, 'utf8'))
}

async function main([plcPort, pdsPort, dir, keptMs]) {
  fs.mkdirSync(path.join(dir, 'blobs'), { recursive: true })
  const directory = await startDirectory(Number(plcPort), path.join(dir, 'plc.jsonl'))
  const secrets = secretsOf(path.join(dir, 'secrets.json'))
  const pds = onLoopback(await PDS.create(envToCfg({
    port: Number(pdsPort),
    hostname: 'localhost',
    devMode: true,
    dataDirectory: dir,
    blobstoreDiskLocation: path.join(dir, 'blobs'),
    didPlcUrl: `http://127.0.0.1:${plcPort}`,
    serviceHandleDomains: ['.test'],
    inviteRequired: false,
    repoBackfillLimitMs: keptMs && Number(keptMs),
  }), envToSecrets(secrets)))
  await pds.start()

  const stop = async () => {
    await pds.destroy()
    await directory.destroy()
    process.exit(0)
  }
  process.once('SIGTERM', stop)
  process.stdin.once('end', stop).resume()
  console.log(JSON.stringify({ pds: `http://127.0.0.1:${pdsPort}`, adminPassword: secrets.adminPassword }))
}

main(process.argv.slice(2)).catch((err) => {
  console.error(err)
  process.exit(1)
})
