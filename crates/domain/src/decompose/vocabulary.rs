//! The words and phrases that say what a text asks for, in English, German, Spanish and French.
//!
//! A phrase is written in lower case and without accents. `deploy*` stands for every word that
//! begins so. A capital asks for one: `REST` is found where all of it is in capitals, `Express`
//! where its first letter is one. Of phrases that begin at the same word the longest counts, so
//! that a harmless phrase (`the rest of`) takes the place of a telling one in it.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, MatchKind};

use super::component::Component;
use super::words::{Case, Words};
use crate::project::Kind;

/// What a phrase says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A component by what it is called. Denied, it is not wanted at all.
    Names(&'static [Component]),
    /// A component by a thing it is made with. Denied, only that thing is not wanted.
    Made(&'static [Component]),
    /// Nothing, though a part of it might.
    Nothing,
    /// What follows within so many words is not wanted.
    Denies(usize),
    /// What stands before it is not wanted, or is there already.
    Dismisses,
    /// What follows is to stay as it is, which says nothing of what is wanted.
    Spares,
    /// What follows in the clause says when, and nothing of what is wanted.
    Conditions,
    /// Something is to be made or changed.
    Makes,
    /// Something is the case.
    States,
    /// An analysis or a review, where a piece begins so.
    Asks(Kind),
    /// What follows is a rule for the work and no work of its own, where a piece begins so.
    Rules,
    /// The pieces have an order; how much it says so.
    Orders(usize),
    /// The pieces have nothing to do with each other.
    Separates,
    /// A heading over what was observed: no work of its own, and no sign of a component.
    HeadsObservation,
    /// A heading over how things are to be made: no work of its own.
    HeadsFrame,
    /// A heading over what is not wanted.
    HeadsExclusion,
}

/// A phrase that was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hit {
    pub meaning: Meaning,
    /// Its first and last word.
    pub first: usize,
    pub last: usize,
}

/// Every phrase of `words`, in order, without overlaps. Linear in the text.
pub(super) fn hits(words: &Words) -> Vec<Hit> {
    let found = VOCABULARY.automaton.find_iter(words.folded());
    found
        .filter_map(|found| {
            let phrase = &VOCABULARY.phrases[found.pattern().as_usize()];
            let first = words.index_at(found.start());
            let last = words.index_at(found.end() - 1);
            let as_written = phrase.cases.iter().enumerate().all(|(at, case)| {
                let word = words.word(first + at).map(|word| word.case);
                match case {
                    Case::Lower => true,
                    Case::Capital => word.is_some_and(|case| case != Case::Lower),
                    Case::Upper => word == Some(Case::Upper),
                }
            });
            as_written.then_some(Hit {
                meaning: phrase.meaning,
                first,
                last,
            })
        })
        .collect()
}

struct Phrase {
    meaning: Meaning,
    cases: Vec<Case>,
}

struct Vocabulary {
    automaton: AhoCorasick,
    phrases: Vec<Phrase>,
}

static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let mut phrases = Vec::new();
    let mut patterns = Vec::new();
    for (meaning, list) in PHRASES {
        for phrase in list.split(',').map(str::trim) {
            let words = Words::of(phrase.trim_end_matches('*'));
            let mut pattern = words.folded().to_owned();
            if phrase.ends_with('*') {
                pattern.pop();
            }
            let case = |at| words.word(at).map_or(Case::Lower, |word| word.case);
            let cases = (0..words.len()).map(case).collect();
            patterns.push(pattern);
            phrases.push(Phrase {
                meaning: *meaning,
                cases,
            });
        }
    }
    let automaton = AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(patterns)
        .expect("a few hundred short phrases fit");
    Vocabulary { automaton, phrases }
});

const DATABASE: &[Component] = &[Component::Database];
const API: &[Component] = &[Component::Api];
const AUTHENTICATION: &[Component] = &[Component::Authentication];
const FRONTEND: &[Component] = &[Component::Frontend];
const TESTING: &[Component] = &[Component::Testing];
const DEPLOYMENT: &[Component] = &[Component::Deployment];
const FULL_STACK: &[Component] = &[Component::Database, Component::Api, Component::Frontend];

const PHRASES: &[(Meaning, &str)] = &[
    (Meaning::Names(FULL_STACK), "full stack, fullstack"),
    (
        Meaning::Names(DATABASE),
        "database*, data base, db, data layer, persistence layer, datenbank*, base de datos, \
         bases de datos, bbdd, base de donnees, bases de donnees, bdd, persistenz*, banco de dados",
    ),
    (
        Meaning::Made(DATABASE),
        "postgres, postgresql, postgre sql, mysql, mariadb, sqlite, mongodb, mongo, dynamodb, sql, \
         supabase, prisma, sequelize, typeorm, sqlalchemy, alembic, orm, data model, data models, \
         data modelling, database model, domain models, db model, schema, schemas, schema change, \
         schema changes, migrations, schema migration, schema migrations, sql migration, \
         datenmodell*, datenschema, migrationen, modelo de datos, modelos de datos, esquema, \
         migraciones, modele de donnees, modeles de donnees, tables sql",
    ),
    (
        Meaning::Names(API),
        "api, apis, backend, backends, back end, server side, serverseite, serverseitig*, \
         web service, web services, webservice*, schnittstelle, schnittstellen, lado del servidor, \
         cote serveur, interface de programmation",
    ),
    (
        Meaning::Made(API),
        "REST, rest api, rest apis, restful, rest endpoint*, rest service*, rest interface, \
         endpoint*, end points, graphql, grpc, microservice*, micro service*, route handler*, \
         webhook*, Express, expressjs, express js, express backend, express server, express api, \
         fastapi, fast api, nodejs, node js, django, Flask, flask api, flask app, spring boot, nestjs, nest js, \
         laravel, ruby on rails, fastify, http server, node server, openapi, swagger, crud, \
         services, backend service, endpunkt*, rest schnittstelle*, microservicio*, servicio web, \
         servicios web, points de terminaison, point de terminaison, point d entree, \
         punto de acceso, puntos de acceso",
    ),
    (
        Meaning::Names(AUTHENTICATION),
        "auth, authn, authz, authenticat*, authoriz*, authoris*, login, logins, user accounts, \
         access control, authentifi*, autorisier*, anmeldung, benutzeranmeldung, \
         benutzerverwaltung, rechteverwaltung, zugriffskontrolle, autentic*, autoriz*, \
         inicio de sesion, control de acceso, autorisation*, connexion des utilisateurs, \
         controle d acces",
    ),
    (
        Meaning::Made(AUTHENTICATION),
        "jwt, jwts, oauth*, oidc, openid, openid connect, sso, single sign on, saml, 2fa, mfa, \
         totp, two factor, passkey*, webauthn, rbac, role based access, role based access control, \
         roles and permissions, user roles, log in, logging in, logged in, sign in, sign up, \
         sign on, signin, signup, signing in, logout, log out, password reset, reset password, \
         reset their password, password hashing, hash passwords, passwords, forgot password, \
         session cookie*, access token*, refresh token*, bearer token*, security features, \
         magic link*, einloggen, ausloggen, anmelden, registrieren, registrierung, passworter, \
         passwort*, rollen und rechte, iniciar sesion, cerrar sesion, registro de usuarios, \
         contrasena*, roles y permisos, se connecter, mot de passe, mots de passe, \
         inscription des utilisateurs, roles et permissions",
    ),
    (
        Meaning::Names(FRONTEND),
        "frontend*, front end, front ends, ui, uis, gui, user interface*, web interface, \
         web ui, client side, oberflache*, oberflaeche*, benutzeroberfl*, weboberfl*, adminoberfl*, \
         bedienoberfl*, interfaz, interfaz de usuario, interface utilisateur, interface web, \
         interface graphique, ihm",
    ),
    (
        Meaning::Made(FRONTEND),
        "react, reactjs, react js, react native, Vue, vuejs, vue js, vue 3, angular, angularjs, \
         svelte, sveltekit, nextjs, next js, nuxt, nuxtjs, tailwind*, css, scss, html, SPA, \
         single page app*, mobile app, landing page*, home page, homepage, login page, \
         login screen, login form, signup page, signup form, sign up page, sign up form, \
         registration form, registration page, contact form, contact page, settings page, \
         settings screen, profile page, checkout page, product page*, detail page*, admin page*, \
         admin panel, admin dashboard, admin ui, web page, web pages, webpage*, dashboard*, \
         button*, navbar, nav bar, sidebar, side bar, modal, modals, dark mode, responsive, \
         component library, storybook, header and footer, react to vue, react to svelte, \
         from react to, react on the frontend, startseite, anmeldeseite, anmeldemaske, \
         anmeldeformular, kontaktformular, eingabemaske*, schaltflache*, schaltflaeche*, \
         pagina de inicio, pantalla*, boton, botones, formulario*, panel de administracion, \
         page d accueil, page de connexion, tableau de bord, ecran*, bouton*, formulaire*",
    ),
    (
        Meaning::Names(TESTING),
        "tests, testing, test suite, test suites, test cases, testfalle, testfaelle, \
         test coverage, testabdeckung, pruebas, pruebas unitarias, pruebas de integracion, \
         couverture de tests",
    ),
    (
        Meaning::Made(TESTING),
        "unit test*, unittest*, integration test*, integrationstest*, regression test*, \
         regressionstest*, end to end test*, e2e, e2e test*, load test*, lasttest*, smoke test*, \
         acceptance test*, snapshot test*, property test*, write a test, add a test, add test, \
         test it, test everything, test all, test the, test that, tdd, pytest, Jest, vitest, \
         cypress, playwright, junit, rspec, mocha, testen, getestet, tests unitaires, \
         tests d integration, tester, prueba unitaria, testear",
    ),
    (
        Meaning::Names(DEPLOYMENT),
        "deploy*, ci cd, cicd, continuous integration, continuous deployment, \
         continuous delivery, bereitstell*, ausroll*, inbetriebnahme, despleg*, despliegue*, \
         desplieg*, puesta en produccion, integracion continua, deploiement*, deployer, \
         mise en production, integration continue",
    ),
    (
        Meaning::Made(DEPLOYMENT),
        "docker, dockerfile*, docker compose, dockerize*, dockerise*, containerize*, \
         containerise*, kubernetes, k8s, helm chart*, helm, terraform, pulumi, ansible, \
         github actions, github action, gitlab ci, ci, ci pipeline, ci pipelines, build pipeline, \
         jenkins, nginx, vercel, netlify, heroku, fly io, aws, infrastructure as code, hosting",
    ),
    (
        Meaning::Nothing,
        "frontend team, frontend developers, backend team, backend developers, api team, frontend devs, \
         backend devs, if you, if we, if possible, would be great if, would be nice if, wenn du, wenn ihr, wenn moglich, \
         si tu, si vous, si possible, si puedes, si es posible, ci dessous, ci dessus, ci joint, ci jointe, ci apres, ci contre, celui ci, celle ci, ceux ci, \
         celles ci, courriel html, courriels html, mails html, emails html, correos html, html mail*, html email*, html e mail*, les services, des services, nos services, \
         vos services, step by step wizard, step by step guide, step by step tutorial, step by step instructions, \
         the rest, the rest of, rest of, rest of the, react to, react to the, reacts to, react on, \
         react quickly, reacted to, point de vue, Vue d ensemble, en vue, la vue, une vue, de vue, \
         api key, api keys, api token, api tokens, terms of service, customer service, \
         customer services, services offered, our services, their services, professional services, \
         self service, express interest, express shipping, express delivery, express checkout, \
         american express, sql injection, json schema, color schema, since the last deployment, \
         since the last deploy, after the last deploy, after the last deployment, since deployment, \
         since we deployed, after deploying, since the deploy, log in json, sign up for, \
         users take tests, take tests, a b tests, a b testing, a b test, blood tests, \
         language tests, quiz tests, there is no, there are no, there s no, we have no, has no, \
         have no, had no, not only, no longer, no matter, es gibt kein, es gibt keine, es gibt \
         noch kein, es gibt noch keine, wir haben kein, wir haben keine, wir haben noch keine, \
         nicht nur, no hay, no tenemos, no solo, no funciona*, no puede*, no se puede*, no carga*, \
         no deja*, no me, il n y a pas de, il n y a pas d, il n y a aucun, il n y a aucune, \
         on n a pas de, on n a pas d, nous n avons pas de, nous n avons pas d, pas seulement, \
         no one, no error, no errors, no response, button up, angular momentum, database error, \
         internal server error, react quickly to, rest assured, spa and, hosting company, \
         hosting costs, smtp login, last login, last login date, testing ground, ci te, \
         dashboard camera, public apis like, third party api, third party apis, pantalla completa",
    ),
    (
        Meaning::Denies(3),
        "no, without, without any, kein, keine, keinen, keinerlei, ohne, sin, sans, pas de, pas d, \
         except, except for, ausser, excepto, salvo, sauf, instead of, rather than, anstatt, statt, \
         en lugar de, en vez de, au lieu de, no need for, no need of, aucun, aucune, ningun, \
         ninguna",
    ),
    (
        Meaning::Denies(4),
        "don t need, do not need, dont need, doesn t need, does not need, don t want, \
         do not want, dont want, don t touch, do not touch, dont touch, don t change, \
         do not change, dont change, don t modify, do not modify, don t add, do not add, don t \
         build, do not build, don t implement, do not implement, don t write, do not write, \
         don t create, do not create, don t include, do not include, never touch, skip, skip the, \
         exclude, excluding, leave out, omit, ignore, forget about, leave alone, \
         without touching, without changing, kein neues, no necesitamos, no necesito, \
         no se necesita*, no toques, no tocar, no hace falta, ne touche pas, ne touchez pas, \
         ne pas toucher, pas besoin de, pas besoin d, brauche kein, brauche keine, \
         brauchen kein, brauchen keine, keine anderungen an, keine aenderungen an, verzichte auf",
    ),
    (
        Meaning::Dismisses,
        "not needed, not required, not necessary, isn t needed, aren t needed, is not needed, \
         are not needed, unnecessary, already exists, already exist, \
         exists already, is already there, are already there, already there, already done, \
         is done, are done, is finished, already in place, already works, already finished, \
         is not part, are not part, not part of, nicht notig, nicht noetig, nicht notwendig, \
         nicht benotigt, nicht gebraucht, nicht erforderlich, brauchen wir nicht, \
         brauche ich nicht, bitte nicht anfassen, nicht anfassen, bitte in ruhe lassen, existiert bereits, existiert schon, gibt es schon, gibt es bereits, \
         steht schon, ist schon da, ist schon fertig, ist fertig, bleibt wie, bleiben wie, \
         bleibt unverandert, bleibt unveraendert, stays as, stays unchanged, stays the same, \
         remains unchanged, pas necessaire, n est pas necessaire, \
         ne sont pas necessaires, existe deja, existent deja, est deja fait, \
         ya existe, ya existen, ya esta hecho, ya esta hecha, ya esta listo, ya esta lista, \
         no es necesari*, no son necesari*, comes later, will come later, \
         kommt spater, kommt spaeter, viendra plus tard, vendra despues",
    ),
    (
        Meaning::Spares,
        "don t break, do not break, dont break, without breaking, not break, must not break, \
         existing tests, nicht kaputt, ohne zu brechen, sin romper, no romper, sans casser, \
         ne pas casser, must still pass, should still pass",
    ),
    (
        Meaning::Conditions,
        "when, whenever, if, unless, wenn, falls, sobald, quand, lorsque, cuando, si",
    ),
    (
        Meaning::Makes,
        "add, adds, adding, build, building, create, creating, implement*, fix, fixes, fixing, \
         repair, make, make it, write, develop, introduce, support, refactor*, rewrite, replace, \
         migrate*, port, upgrade, update, improve, optimi*, extend, extract, integrate, set up, \
         setup, remove, delete, rename, change, allow, allows, enable, provide, expose, show, send, \
         store, should, shall, must, need, needs, can, wants, want, able to, has to, have to, \
         baue, bauen, erstelle, erstellen, entwickle*, implementier*, behebe*, behoben, fuge, \
         fuege, hinzufugen, hinzufuegen, schreibe, schreiben, andere, erweitere, soll, sollen, \
         sollte, muss, mussen, muessen, konnen, koennen, kann, mochte, moechte, brauchen, \
         brauche, braucht, crea, crear, construye, construir, anade, anadir, agrega, agregar, \
         implementa*, desarrolla*, arregla*, corrige*, corregir, mejora*, debe, deben, deberia*, \
         puede, pueden, necesita*, necesito, quiero, queremos, permite, permitir, haz, hacer, \
         ajoute*, creer, cree, construire, construis, developpe*, corriger, ameliore*, ecrire, \
         ecris, doit, doivent, devrait, peut, peuvent, faut, veux, voudrais, permettre",
    ),
    (
        Meaning::States,
        "is, are, was, were, has, have, had, am, ist, sind, war, waren, hat, haben, es, son, esta, \
         estan, hay, tiene, tenemos, est, sont, etait, ont, avons",
    ),
    (
        Meaning::Asks(Kind::Analysis),
        "analyze, analyse, analysing, analyzing, investigate, explore, explain, find out, \
         figure out why, research, evaluate, assess, plan, document how, analysiere*, \
         untersuche*, erklare, erklaere, finde heraus, analiza, analizar, investiga*, explica*, \
         analyser, analysez, etudie*, explique*",
    ),
    (
        Meaning::Asks(Kind::Review),
        "review, code review, do a code review, security review, security audit, audit, \
         uberprufe, ueberpruefe, prufe, pruefe, begutachte, revisa, revisar, audita, verifie*, \
         relis, relire, passe en revue",
    ),
    (
        Meaning::Rules,
        "use, using, keep, follow, ensure, make sure, prefer, avoid, please, remember, note, don t, \
         do not, never, always, only, stay, must be, should be, nutze, verwende, \
         benutze, bitte, beachte, achte, immer, usa, usar, utiliza, utilizar, manten, evita, \
         asegurate, utilise*, garde*, respecte*, evite*, veille*",
    ),
    (
        Meaning::Orders(2),
        "step by step, one after the other, one after another, in this order, in that order, \
         one at a time, builds on the one before, builds on the previous, \
         builds on the previous one, build on each other, schritt fur schritt, \
         schritt fuer schritt, der reihe nach, nacheinander, bauen aufeinander auf, paso a paso, \
         uno tras otro, en este orden, etape par etape, dans cet ordre, l un apres l autre",
    ),
    (
        Meaning::Orders(1),
        "first, firstly, and then, then, after that, afterwards, finally, once that, next, \
         lastly, step 1, step 2, zuerst, danach, anschliessend, zum schluss, schritt 1, schritt 2, \
         primero, despues, luego, por ultimo, finalmente, d abord, ensuite, puis, enfin",
    ),
    (
        Meaning::Separates,
        "independent of each other, independently of each other, independent tasks, \
         independent changes, independent features, independent fixes, unrelated fixes, \
         unrelated changes, unrelated tasks, unrelated bugs, are independent, are unrelated, \
         nothing to do with each other, at the same time in parallel, do them in parallel, \
         all in parallel, unabhangig voneinander, unabhaengig voneinander, independientes entre si, \
         independientes, independants, independantes, independantes les unes des autres, \
         independants les uns des autres",
    ),
    (
        Meaning::HeadsObservation,
        "steps to reproduce, reproduction, how to reproduce, to reproduce, reproduction steps, \
         repro, repro steps, expected, expected behavior, expected behaviour, expected result, \
         actual, actual behavior, actual behaviour, actual result, observed, environment, \
         logs, log output, stack trace, stacktrace, traceback, error message, screenshots, \
         references, links, see also, current behavior, current behaviour, current state, \
         schritte zum reproduzieren, reproduktion, erwartet, erwartetes verhalten, tatsachlich, \
         tatsachliches verhalten, umgebung, fehlermeldung, pasos para reproducir, \
         comportamiento esperado, comportamiento actual, entorno, etapes pour reproduire, \
         comportement attendu, comportement actuel, environnement",
    ),
    (
        Meaning::HeadsFrame,
        "tech stack, stack, technology, technologies, constraints, acceptance criteria, \
         acceptance, definition of done, non functional requirements, guidelines, conventions, \
         notes, background, context, rules, overview, introduction, motivation, technologien, technik, rahmenbedingungen, \
         randbedingungen, abnahmekriterien, akzeptanzkriterien, hinweise, hintergrund, kontext, \
         tecnologias, restricciones, criterios de aceptacion, notas, contexto, contraintes, \
         criteres d acceptation, remarques, contexte, pile technique",
    ),
    (
        Meaning::HeadsExclusion,
        "out of scope, not in scope, non goals, nongoals, not included, what not to do, \
         nicht enthalten, nicht teil, nicht ziele, nicht im umfang, ausser umfang, \
         fuera de alcance, fuera del alcance, no incluido, hors perimetre, hors scope, non inclus",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_phrase_has_one_meaning_but_for_headings() {
        let mut seen = HashMap::new();
        for (meaning, list) in PHRASES {
            for phrase in list.split(',').map(str::trim) {
                assert!(!phrase.is_empty() && !phrase[..phrase.len() - 1].contains('*'));
                let before = seen.insert(phrase, meaning);
                assert!(before.is_none(), "{phrase:?} is {before:?} and {meaning:?}");
            }
        }
    }
}
