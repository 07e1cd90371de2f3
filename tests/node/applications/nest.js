// A service on NestJS with its hooks for the end: a module that lets go of something slowly, and an
// idle connection of its own (to itself, which stands for a database).
'use strict';

require('reflect-metadata');
const { appendFileSync } = require('fs');
const { createServer, connect } = require('net');
const { Controller, Get, Injectable, Module } = require('@nestjs/common');
const { NestFactory } = require('@nestjs/core');

const note = (word) => appendFileSync(process.env.TEST_NOTES, `${word}\n`);

class Routes {
  hello() {
    return String(process.pid);
  }
}
Controller()(Routes);
Get('*path')(Routes.prototype, 'hello', Object.getOwnPropertyDescriptor(Routes.prototype, 'hello'));

class Database {
  onModuleInit() {
    const server = createServer().listen({ port: 0, host: '127.0.0.1', exclusive: true }, () => {
      this.connection = connect(server.address().port, '127.0.0.1');
    });
  }

  async onModuleDestroy() {
    await new Promise((resolve) => setTimeout(resolve, 50));
    note('module destroyed');
  }

  onApplicationShutdown(signal) {
    note(`shut down by ${signal}`);
  }
}
Injectable()(Database);

class Application {}
Module({ controllers: [Routes], providers: [Database] })(Application);

NestFactory.create(Application, { logger: false }).then((application) => {
  application.enableShutdownHooks();
  return application.listen(0, '127.0.0.1');
});
