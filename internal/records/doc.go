// Package records keeps a record of each destination that is partly hydrated, so that metadata that
// vanishes is noticed.
package records
