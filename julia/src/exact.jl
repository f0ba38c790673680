# The exact evaluation: one sample, unit by unit, Float64 in the log domain. Queries about samples that underflow in the tiles go
# by it, and it is the reference that tests and benchmarks hold the tiles to.

"log value of every unit for sample `n` of `X`, in nats (without a soft evidence's offset)."
function log_values(c::Circuit, X::Data, n::Integer)
    out = Vector{Float64}(undef, num_units(c))
    for u in 1:num_units(c)
        out[u] = if isinput(c.kind[u])
            log_input(c, u, X, n)
        elseif c.kind[u] == PRODUCT
            sum(out[v] for v in children(c, u))
        else
            top = reduce(max, (c.weight[e] > 0 ? out[child(c, u, e)] : -Inf for e in edges(c, u)); init=-Inf)
            isfinite(top) ? top + log(sum(weighted(c, e, out[child(c, u, e)] - top) for e in edges(c, u))) : -Inf
        end
    end
    return out
end

"theta_e exp(nats) of edge `e` of a sum: 0 where its weight is 0, however likely what it leads to."
@inline weighted(c::Circuit, e, nats) = c.weight[e] > 0 ? c.weight[e] * exp(nats) : 0.0

log_input(c, u, X::Masked, n) = X.mask[c.variable[u], n] ? 0.0 : log_input(c, u, X.values, n)

log_input(c, u, X::AbstractMatrix, n) = log_probability(c, u, X[c.variable[u], n])

function log_input(c, u, X::SoftEvidence, n)
    scale = log_scale(c, u, X, n)
    return scale + log(sum(share(c, u, X, k, n, scale) for k in 0:c.categories[u] - 1))
end

# What a category makes of the evidence: its probability times its likelihood. A binomial's may be below any number, where its table
# has underflowed; others' are not, in Float64.

term(c, u, X, k, n) = c.leaf[c.param_start[u] + k * c.param_stride[u]] * likelihood(X, c.variable[u], k, n)

log_term(c, u, X, k, n) = log_probability(c, u, k) + log(likelihood(X, c.variable[u], k, n))

"A logarithm in whose scale the terms of input `u` can be added up."
function log_scale(c, u, X, n)
    c.kind[u] == BINOMIAL || return 0.0
    top = maximum(log_term(c, u, X, k, n) for k in 0:c.categories[u] - 1)
    return isfinite(top) ? top : 0.0
end

"Category `k`'s term over exp(scale)."
share(c, u, X, k, n, scale) =
    c.kind[u] == BINOMIAL ? exp(log_term(c, u, X, k, n) - scale) : scale == 0 ? term(c, u, X, k, n) : term(c, u, X, k, n) / exp(scale)
